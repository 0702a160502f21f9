"""The arguments of the official constructors, read as an architecture, options and parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from torch import nn

from sam2_fast.config import (
    DECODER_OPTIONS,
    FIXED_SETTINGS,
    VERSION_SETTINGS,
    VIDEO_SETTINGS,
    Options,
    Sam2Config,
)
from sam2_fast.model.hiera import Hiera
from sam2_fast.model.image_encoder import FpnNeck, ImageEncoder
from sam2_fast.model.memory_attention import MemoryAttention, MemoryAttentionLayer
from sam2_fast.model.memory_encoder import CXBlock, MemoryEncoder
from sam2_fast.model.model_parts import Parts

__all__ = ["SETTINGS", "VIDEO_SETTINGS", "Construction", "read_arguments"]

PARTS = ("image_encoder", "memory_attention", "memory_encoder")
"""The first arguments of the official `SAM2Base`."""

SETTINGS: dict[str, Any] = {
    "num_maskmem": 7,
    "image_size": 512,
    "backbone_stride": 16,
    "sigmoid_scale_for_mem_enc": 1.0,
    "sigmoid_bias_for_mem_enc": 0.0,
    "binarize_mask_from_pts_for_mem_enc": False,
    "use_mask_input_as_output_without_sam": False,
    "max_cond_frames_in_attn": -1,
    "directly_add_no_mem_embed": False,
    "use_high_res_features_in_sam": False,
    "multimask_output_in_sam": False,
    "multimask_min_pt_num": 1,
    "multimask_max_pt_num": 1,
    "multimask_output_for_tracking": False,
    "use_multimask_token_for_obj_ptr": False,
    "iou_prediction_use_sigmoid": False,
    "memory_temporal_stride_for_eval": 1,
    "non_overlap_masks_for_mem_enc": False,
    "use_obj_ptrs_in_encoder": False,
    "max_obj_ptrs_in_encoder": 16,
    "add_tpos_enc_to_obj_ptrs": True,
    "proj_tpos_enc_in_obj_ptrs": False,
    "use_signed_tpos_enc_to_obj_ptrs": False,
    "only_obj_ptrs_in_the_past_for_eval": False,
    "pred_obj_scores": False,
    "pred_obj_scores_mlp": False,
    "fixed_no_obj_ptr": False,
    "soft_no_obj_ptr": False,
    "use_mlp_for_obj_ptr_proj": False,
    "no_obj_embed_spatial": False,
    "sam_mask_decoder_extra_args": None,
    "compile_image_encoder": False,
    "decoder_mlp_dim": 2048,
}
"""The other arguments of the official `SAM2Base`, in its order, with its defaults.

`decoder_mlp_dim` is ours: the hidden channels of the mask decoder's transformer.
"""

_OPTIONS = [name for name in vars(Options()) if name in SETTINGS]


class Construction(NamedTuple):
    """What a model is built from. parts: None: they are built from the architecture."""

    config: Sam2Config
    options: Options | None
    parts: Parts | None
    compile_image_encoder: bool


def read_arguments(arguments: Sequence[Any], keywords: Mapping[str, Any]) -> Construction:
    """The arguments of a model: `(config, options)`, or those of the official `SAM2Base`.

    Raises TypeError as Python does for a call that does not fit, and ValueError for parts or
    settings of an architecture that no model of this library has.
    """
    if "config" in keywords or isinstance(next(iter(arguments), None), Sam2Config):
        values = _bind(("config", "options"), arguments, keywords)
        return Construction(values["config"], values.get("options"), None, False)
    values = _bind((*PARTS, *SETTINGS), arguments, keywords)
    for name in PARTS:
        if values.get(name) is None:
            raise TypeError(f"{name}: missing; expected a module, or a `Sam2Config` as only part")
    settings = {**SETTINGS, **values}
    parts = Parts(*(settings.pop(name) for name in PARTS))
    version = _version(settings)
    _refuse_other_values(settings)
    config = Sam2Config(
        version=version,
        image_size=settings["image_size"],
        num_maps=settings["num_maskmem"],
        decoder_mlp_dim=settings["decoder_mlp_dim"],
        **_trunk_fields(parts.image_encoder),
        **_memory_fields(parts),
    )
    if isinstance(parts.memory_attention, MemoryAttention):
        parts.memory_attention.set_side(config.grid)
    changes = {name: settings[name] for name in _OPTIONS}
    options = Options().updated(
        **changes, **_decoder_options(settings["sam_mask_decoder_extra_args"])
    )
    return Construction(config, options, parts, bool(settings["compile_image_encoder"]))


def _bind(
    names: Sequence[str], arguments: Sequence[Any], keywords: Mapping[str, Any]
) -> dict[str, Any]:
    """Arguments by name, as Python binds them."""
    if len(arguments) > len(names):
        raise TypeError(f"expected at most {len(names)} arguments, got {len(arguments)}")
    values = dict(zip(names, arguments, strict=False))
    for name, value in keywords.items():
        if name not in names:
            raise TypeError(
                f"got an unexpected keyword argument {name!r}; known are {', '.join(names)}"
            )
        if name in values:
            raise TypeError(f"got multiple values for argument {name!r}")
        values[name] = value
    return values


def _version(settings: Mapping[str, Any]) -> str:
    """The version that has these settings. Raises ValueError if none has."""
    names = (*VERSION_SETTINGS, "no_obj_embed_spatial")
    values = [bool(settings[name]) for name in names]
    if all(values):
        return "2.1"
    # Without positions of pointers it does not matter whether they are signed.
    if not (values[0] or values[1] or values[3]):
        return "2.0"
    raise ValueError(
        f"{', '.join(names)}: expected all True (SAM 2.1) or all False (SAM 2), got {values}; no "
        f"released model has this architecture"
    )


def _refuse_other_values(settings: Mapping[str, Any]) -> None:
    expected = {name: value for name, value in FIXED_SETTINGS.items() if name in SETTINGS}
    other = {name: settings[name] for name in expected if settings[name] != expected[name]}
    if other:
        required = {name: expected[name] for name in other}
        raise ValueError(
            f"{', '.join(other)}: expected {required}, as in every released model, got {other}; "
            "another architecture cannot be built. Pass these values, or override the method that "
            "reads a setting in a subclass"
        )


def _trunk_fields(encoder: nn.Module) -> dict[str, Any]:
    """The fields of `Sam2Config` that describe the image encoder."""
    if not isinstance(encoder, ImageEncoder):
        raise _other_part("image_encoder", encoder, ImageEncoder)
    trunk, neck = encoder.trunk, encoder.neck
    if not isinstance(trunk, Hiera):
        raise _other_part("image_encoder.trunk", trunk, Hiera)
    if not isinstance(neck, FpnNeck):
        raise _other_part("image_encoder.neck", neck, FpnNeck)
    ends = [-1, *trunk.stage_ends]
    blocks: Any = trunk.blocks
    heads = blocks[0].attn.num_heads
    fields = {
        "embed_dim": trunk.patch_embed.proj.out_channels,
        "num_heads": heads,
        "stages": tuple(b - a for a, b in pairwise(ends)),
        "global_blocks": tuple(trunk.global_att_blocks),
        "windows": trunk.window_spec,
        "pos_grid": tuple(trunk.window_pos_embed_bkg_spatial_size),
        "drop_path_rate": float(getattr(blocks[-1].drop_path, "drop_prob", 0.0)),
        "hidden_dim": neck.d_model,
    }
    dims = [fields["embed_dim"] * 2**i for i in range(len(fields["stages"]))]
    channels = [blocks[end].dim_out for end in trunk.stage_ends]
    pooled = [end + 1 for end in trunk.stage_ends[:-1]]
    doubled = [blocks[end].attn.num_heads for end in trunk.stage_ends]
    if (
        channels != dims
        or doubled != [heads * 2**i for i in range(len(dims))]
        or trunk.q_pool_blocks != pooled
        or trunk.q_stride != (2, 2)
    ):
        raise ValueError(
            "image_encoder.trunk: expected q_pool=3, q_stride=(2, 2), dim_mul=2 and head_mul=2, as "
            f"in every released model, got channels {channels}, heads {doubled}, queries pooled "
            f"by {trunk.q_stride} in the blocks {trunk.q_pool_blocks}"
        )
    levels = len(neck.convs) - encoder.scalp
    if levels != 3 or not trunk.return_interm_layers:
        raise ValueError(
            f"image_encoder: expected three levels, of stride 4, 8 and 16, got {levels}; pass "
            "scalp=1 and return_interm_layers=True"
        )
    return fields


def _memory_fields(parts: Parts) -> dict[str, Any]:
    """The fields of `Sam2Config` that describe memory attention and the memory encoder."""
    attention, encoder = parts.memory_attention, parts.memory_encoder
    dim = parts.image_encoder.neck.d_model
    for name, part in (("memory_attention", attention), ("memory_encoder", encoder)):
        if not isinstance(part, nn.Module):
            raise TypeError(f"{name}: expected a module, got {part!r}")
    weight = getattr(getattr(encoder, "out_proj", None), "weight", None)
    fields: dict[str, Any] = {"memory_dim": dim if weight is None else weight.shape[0]}
    if isinstance(encoder, MemoryEncoder):
        projection: Any = encoder.pix_feat_proj
        _expect("memory_encoder: in_dim", projection.weight.shape[1], dim)
        block = next(iter(getattr(encoder.fuser, "layers", ())), None)
        if isinstance(block, CXBlock):
            fields["fuser_dim"] = block.pwconv1.out_features
    if isinstance(attention, MemoryAttention):
        _expect("memory_attention: d_model", attention.d_model, dim)
        fields["memory_layers"] = attention.num_layers
        layer = attention.layers[0]
        if isinstance(layer, MemoryAttentionLayer):
            fields["memory_ffn_dim"] = layer.dim_feedforward
            fields["dropout"] = float(layer.dropout_value)
            channels = getattr(layer.cross_attn_image, "kv_in_dim", fields["memory_dim"])
            _expect("memory_attention: kv_in_dim", channels, fields["memory_dim"])
    return fields


def _expect(name: str, value: object, expected: object) -> None:
    if value != expected:
        raise ValueError(f"{name}: expected {expected}, that of the other parts, got {value}")


def _other_part(name: str, part: object, expected: type) -> Exception:
    kind = type(part)
    return ValueError(
        f"{name}: expected a {expected.__name__} or a subclass, got a "
        f"{kind.__module__}.{kind.__qualname__}; build the model with the former, then assign "
        f"your module to `model.{name}`"
    )


def _decoder_options(extra: Mapping[str, Any] | None) -> dict[str, Any]:
    """The options in `sam_mask_decoder_extra_args`."""
    values = dict(extra or {})
    if other := sorted(values.keys() - {*DECODER_OPTIONS}):
        raise ValueError(
            f"sam_mask_decoder_extra_args: expected some of {', '.join(DECODER_OPTIONS)}, got "
            f"{', '.join(other)}; another mask decoder cannot be built, but may be assigned to "
            "`model.sam_mask_decoder`"
        )
    return values
