"""Ops: public functions with several backends each.

    from sam2_fast.ops import connected_components, memory_attention, window_attention

Every module of this folder except `core` has one op or several. The names in its `__all__` become
names of this package at import, so that a new op needs no entry in a list.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # made by `python -m tools.op_names --write`
    from sam2_fast.ops.affine import AffineWeights as AffineWeights
    from sam2_fast.ops.affine import affine as affine
    from sam2_fast.ops.connected_components import connected_components as connected_components
    from sam2_fast.ops.connected_components import small_components as small_components
    from sam2_fast.ops.hiera_block import HieraBlockWeights as HieraBlockWeights
    from sam2_fast.ops.hiera_block import hiera_block as hiera_block
    from sam2_fast.ops.mask_decoder import MaskDecoderWeights as MaskDecoderWeights
    from sam2_fast.ops.mask_decoder import mask_decoder as mask_decoder
    from sam2_fast.ops.mask_postprocess import Judged as Judged
    from sam2_fast.ops.mask_postprocess import mask_postprocess as mask_postprocess
    from sam2_fast.ops.memory_attention import Memories as Memories
    from sam2_fast.ops.memory_attention import MemoryAttentionWeights as MemoryAttentionWeights
    from sam2_fast.ops.memory_attention import memory_attention as memory_attention
    from sam2_fast.ops.memory_encoder import MemoryEncoderWeights as MemoryEncoderWeights
    from sam2_fast.ops.memory_encoder import memory_encoder as memory_encoder
    from sam2_fast.ops.nms import batched_nms as batched_nms
    from sam2_fast.ops.nms import nms as nms
    from sam2_fast.ops.object_heads import ObjectHeadsWeights as ObjectHeadsWeights
    from sam2_fast.ops.object_heads import object_heads as object_heads
    from sam2_fast.ops.preprocess import preprocess_frame as preprocess_frame
    from sam2_fast.ops.preprocess import preprocess_images as preprocess_images
    from sam2_fast.ops.preprocess import resize_bicubic as resize_bicubic
    from sam2_fast.ops.rope_attention import rope_attention as rope_attention
    from sam2_fast.ops.rope_attention import rope_table as rope_table
    from sam2_fast.ops.window_attention import window_attention as window_attention

_modules = [
    import_module(f"{__name__}.{module.name}")
    for module in iter_modules(__path__)
    if module.name != "core"
]
# This must come after the imports: importing a module makes it an attribute of this package, and
# the function of the same name must replace it.
__all__ = []
for _module in _modules:
    for _name in _module.__all__:
        globals()[_name] = getattr(_module, _name)
        __all__ += [_name]
