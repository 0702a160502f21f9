"""Kernels on a device that is not the current one: results are bitwise equal to those of the first
device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves

from benchmarks.timing import to_device
from sam2_fast.ops.connected_components import connected_components
from sam2_fast.ops.core.native import no_triton
from sam2_fast.ops.hiera_block import hiera_block
from sam2_fast.ops.mask_decoder import mask_decoder
from sam2_fast.ops.mask_postprocess import mask_postprocess
from sam2_fast.ops.memory_encoder import memory_encoder
from sam2_fast.ops.preprocess import preprocess_frame
from sam2_fast.ops.rope_attention import rope_attention, rope_table
from tests.ops.cases import collected
from tests.ops.test_hiera_block import SHAPES, case, cast
from tests.ops.test_mask_decoder import case as decoder_case
from tests.ops.test_mask_decoder import cast as decoder_cast
from tests.ops.test_memory_encoder import case as encoder_case
from tests.ops.test_memory_encoder import cast as encoder_cast

GENERATOR = torch.Generator().manual_seed(0)
CASES: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "connected_components": (
        connected_components,
        (torch.rand(2, 33, 40, generator=GENERATOR) < 0.5,),
    ),
    "hiera_block": (hiera_block, cast(case(*SHAPES["pooled"]), torch.bfloat16)),
    "mask_decoder": (mask_decoder, tuple(decoder_cast(decoder_case(dim=128), torch.bfloat16))),
    "memory_encoder": (memory_encoder, tuple(encoder_cast(encoder_case(), torch.bfloat16))),
    "mask_postprocess": (
        mask_postprocess,
        (torch.randn(3, 9, 11, generator=GENERATOR), (33, 20), 0.0, 0.5),
    ),
    "preprocess": (
        preprocess_frame,
        (
            torch.randint(0, 256, (37, 50, 3), dtype=torch.uint8, generator=GENERATOR),
            24,
            (0.5,) * 3,
            (0.2,) * 3,
        ),
    ),
    "rope_attention": (
        rope_attention,
        (
            *(
                torch.randn(2, n, c, generator=GENERATOR).bfloat16()
                for n, c in ((64, 64), (69, 64), (69, 16))
            ),
            rope_table(64, 8),
            5,
        ),
    ),
    **collected("ON_A_DEVICE"),
}


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_a_kernel_runs_on_the_device_of_its_tensors(name: str) -> None:
    if reason := no_triton():
        pytest.skip(reason)
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    op, arguments = CASES[name]
    first, second = (
        op(*to_device(arguments, torch.device("cuda", i)), backend="triton") for i in (0, 1)
    )
    for a, b in zip(tree_leaves(tuple(first)), tree_leaves(tuple(second)), strict=True):
        if isinstance(a, torch.Tensor):
            assert b.device.index == 1 and torch.equal(a.cpu(), b.cpu())
    assert torch.cuda.current_device() == 0
