"""Every kernel compiles in bfloat16, for both values of its boolean constants, and with sizes of 1.

Triton replaces an argument of 1 by a constant and compiles the kernel again. The interpreter has no
bfloat16: only these tests find kernels whose types do not fit.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest

from tests.ops.cases import Sizes, collected
from tests.ops.triton_tools import compiled

HALVES = dict.fromkeys(
    (
        "q",
        "k",
        "v",
        "qkv",
        "pad",
        "position",
        "temporal",
        "weight",
        "bias",
        "x",
        "keys",
        "values",
        "out",
    ),
    "*bf16",
)
HALVES |= dict.fromkeys(
    (
        "like",
        "norm_weight",
        "norm_bias",
        "residual",
        "weight1",
        "bias1",
        "weight2",
        "bias2",
        "gamma",
    ),
    "*bf16",
)
FLOATS = dict.fromkeys(
    ("logits", "table", "statistics", "in_statistics", "out_statistics", "boxes", "column_sums"),
    "*fp32",
)
FLOATS |= dict.fromkeys(("span_accumulators", "span_maxima", "span_sums"), "*fp32")
WORDS = dict.fromkeys(
    (
        "labels",
        "areas",
        "bits",
        "stats",
        "counts",
        "changes",
        "first_keys",
        "first_starts",
        "second_starts",
        "overlaps",
    ),
    "*i32",
)
WORDS |= dict.fromkeys(("first_weights", "second_weights"), "*i32")
BYTES = dict.fromkeys(("masks", "source", "selected", "alive", "kept"), "*u8")
POINTERS = (
    HALVES | FLOATS | WORDS | BYTES | dict.fromkeys(("slots", "ends", "addresses", "idxs"), "*i64")
)
DECODER = dict.fromkeys(
    ("image", "queries", "up1", "mid_features", "up2", "high_features"), "*bf16"
)
DECODER |= dict.fromkeys(
    (
        "offsets",
        "hypernetwork",
        "iou",
        "parts",
        "residual",
        "self_parts",
        "mlp_parts",
        "pointer",
        "mask",
    ),
    "*fp32",
)
DECODER |= dict.fromkeys(
    ("absent_pointer", "presence", "prompts", "out_pointer", "v", "v_bias", "out"), "*bf16"
)
DECODER |= dict.fromkeys(
    (f"{a}_{b}{c}" for a in ("self", "to_image", "to_token") for b in "qkv" for c in ("", "_bias")),
    "*bf16",
)
DECODER |= dict.fromkeys(
    (
        f"{a}{b}{c}"
        for a in ("iou", "mask", "presence", "pointer")
        for b in "123"
        for c in ("", "_bias")
    ),
    "*bf16",
)
DECODER |= dict.fromkeys(("self_out", "to_token_out", "to_image_q"), "*bf16") | {
    "present": "*u8",
    "counts": "*i32",
}
DECODER |= dict.fromkeys(("self_scale", "delta", "absent_logit"), "fp32")
# Between launches, tokens are float32; the final tokens have the dtype of the prompts.
STATE = {"tokens": "*fp32"}
SCALARS = dict.fromkeys(("scale", "lower_threshold", "upper_threshold", "eps", "threshold"), "fp32")
# Names of all constants that launches set to True or False.
FLAGS = {
    "ADD",
    "ALONE",
    "BEST",
    "BICUBIC",
    "BINARIZE",
    "CHOOSE",
    "COPY",
    "EVEN",
    "EXACT",
    "FROM_PROMPTS",
    "MASKED",
    "MEASURE",
    "PADDED",
    "PEELED",
    "PLANES",
    "POOL",
    "RAGGED",
    "REGULAR",
    "SCALE",
    "SELF",
    "STORE",
    "TO_IMAGE",
    "TO_TOKEN",
}
TILE = {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 16, "EXACT": False}
_KERNELS: list[tuple[str, str, dict[str, Any]]] = [
    *[
        ("connected_components", name, {"BLOCK": 256})
        for name in ("init", "merge", "count", "spread")
    ],
    *[("layer_norm", name, {"BLOCK": 16, "WIDE": 16}) for name in ("row_statistics", "normalize")],
    (
        "linear",
        "linear",
        dict.fromkeys(("SCALE", "ADD", "POOL", "MEASURE", "EVEN"), True)
        | TILE
        | {"ACTIVATION": 1, "GROUP": 8, "PARTS": 2},
    ),
    ("decoder_heads", "token_to_image_output", {"SPANS": 4, "TOGETHER": 2, "HEADS": 8, "DIM": 128}),
    (
        "decoder_heads",
        "token_heads",
        {"MASKED": True, "PARTS": 8, "DIM": 128, "WIDE": 32, "VALUES": 4, "BLOCK": 32},
    ),
    (
        "decoder_step",
        "token_step",
        dict.fromkeys(("FROM_PROMPTS", "EXACT", "SELF"), False)
        | dict.fromkeys(("ADD", "MASKED", "TO_TOKEN", "TO_IMAGE"), True)
        | {"PARTS": 4, "HEADS": 8, "TOKENS": 16, "DIM": 128},
    ),
    (
        "decoder_mlp",
        "token_mlp",
        {"PARTS": 8, "TOKENS": 16, "DIM": 128, "BLOCK": 32, "EXACT": False},
    ),
    ("hiera_block", "mlp", {"LOW": 16, "REST": 16, "BLOCK_M": 16, "BLOCK_H": 16, "EXACT": False}),
    (
        "mask_decoder",
        "token_to_image_attention",
        {"DIM": 128, "ROWS": 32, "BLOCK": 16, "EXACT": False},
    ),
    (
        "mask_decoder",
        "image_to_token_attention",
        {"HEADS": 8, "AT_ONCE": 4, "TOKENS": 4, "DIM": 128, "BLOCK": 16, "EXACT": False},
    ),
    (
        "mask_prediction",
        "upscale_and_predict_masks",
        {"CHOOSE": False, "VALUES": 4, "MASKS": 1, "DIM": 128, "BLOCK": 16, "EXACT": False},
    ),
    ("mask_postprocess", "bits", {"CHOOSE": True, "STORE": True, "COLUMNS": 8, "ROWS": 64}),
    *[("mask_postprocess", name, {"COLUMNS": 8, "WORDS": 8}) for name in ("count", "write")],
    (
        "memory_attention",
        "keys",
        {"NARROW": 16, "HALF": 16, "COPY": True, "BLOCK": 16, "EXACT": False},
    ),
    ("memory_attention", "gather", {"BLOCK": 16}),
    (
        "memory_attention",
        "project",
        {"CHANNELS": 32, "HALF": 16, "BLOCK": 16, "BLOCK_N": 16, "EXACT": False},
    ),
    ("memory_encoder", "first", {"BINARIZE": False, "WIDE": 4, "BLOCK": 16}),
    ("memory_encoder", "down", {"DEEP": 16, "WIDE": 16, "BLOCK": 16, "EXACT": False}),
    ("memory_encoder", "depthwise", {"WIDE": 16, "BLOCK": 16}),
    ("nms", "overlap", {"ROWS": 16, "WORDS": 4}),
    ("nms", "greedy", {"WIDE": 4}),
    (
        "object_heads",
        "object_state",
        {
            "BEST": True,
            "DIM": 128,
            "PRESENCE": 32,
            "POINTER": 128,
            "VALUES": 4,
            "BLOCK": 32,
            "PIXELS": 256,
        },
    ),
    (
        "object_heads",
        "select_mask",
        {"CHOOSE": True, "VALUES": 4, "BLOCKS": 4, "DIM": 128, "PIXELS": 256},
    ),
    (
        "preprocess",
        "resample",
        {"BICUBIC": True, "PLANES": True, "SECOND": 8, "FIRST": 16, "FIXED": 22},
    ),
    ("rope_attention", "rotate", {"BLOCK": 16, "HALF": 16}),
    (
        "attention",
        "attend",
        {
            "WIDE": 16,
            "VALUES": 16,
            "BLOCK_Q": 16,
            "BLOCK_K": 16,
            "value_dim": 8,
            "RAGGED": True,
            "ALONE": False,
            "PEELED": True,
            "EXACT": False,
        },
    ),
    ("attention", "merge", {"SPANS": 2, "BLOCK": 16, "VALUES": 16}),
    (
        "window_attention",
        "window",
        {
            "head_dim": 16,
            "BLOCK_Q": 16,
            "BLOCK_K": 16,
            "PACK": 2,
            "LOW": 16,
            "REST": 16,
            "POOL": True,
            "PADDED": True,
            "REGULAR": False,
            "EXACT": False,
            "window_height": 4,
            "window_width": 4,
        },
    ),
]


STEP_MODULES = ("decoder_step", "decoder_mlp")
DECODER_MODULES = (
    *STEP_MODULES,
    "mask_decoder",
    "mask_prediction",
    "decoder_heads",
    "object_heads",
)


def _types(module: str, name: str) -> dict[str, str]:
    """Triton's types of pointers and floats by argument name."""
    types = POINTERS | SCALARS
    if module in DECODER_MODULES:
        types |= DECODER | {"tokens": "*bf16"}
    if module in STEP_MODULES:
        types |= STATE
    if name in ("attend", "merge"):
        return {key: value for key, value in types.items() if key not in ("keys", "values")}
    return types


KERNELS = [
    Sizes(module, name, constants, _types(module, name)) for module, name, constants in _KERNELS
]
KERNELS += collected("TRITON_SIZES")


@pytest.mark.parametrize("row", KERNELS, ids=[f"{row.module} {row.name}" for row in KERNELS])
def test_compiles_if_every_size_is_one(row: Sizes) -> None:
    pytest.importorskip("triton")
    kernel = _kernel(row)
    specialized = [
        p.name
        for p in kernel.params
        if p.name not in row.types | row.constants and not p.do_not_specialize
    ]
    _compile(kernel, row.types, row.constants | dict.fromkeys(specialized, 1))


def _flipped() -> list[tuple[Sizes, str]]:
    """Each kernel once for each of its boolean constants, with the opposite value of that one."""
    return [
        (row._replace(constants=row.constants | {flag: not value}), flag)
        for row in KERNELS
        for flag, value in row.constants.items()
        if isinstance(value, bool)
    ]


@pytest.mark.parametrize(
    "row",
    [row for row, _ in _flipped()],
    ids=[f"{row.module} {row.name} {flag}={row.constants[flag]}" for row, flag in _flipped()],
)
def test_compiles_in_bfloat16_with_each_boolean_constant_flipped(row: Sizes) -> None:
    pytest.importorskip("triton")
    types = row.types
    if row.constants.get("EXACT"):  # set for float32 only: products without TF32
        types = {key: value.replace("bf16", "fp32") for key, value in types.items()}
    _compile(_kernel(row), types, row.constants)


def test_the_table_has_every_constant_and_flags_are_booleans() -> None:
    """A constant that launches set to True or False must be a bool in the table above."""
    pytest.importorskip("triton")
    for row in KERNELS:
        declared = {p.name for p in _kernel(row).params if p.is_constexpr}
        assert declared == set(row.constants), row
        flags = FLAGS & declared
        assert all(isinstance(row.constants[flag], bool) for flag in flags), (row, flags)


def _kernel(row: Sizes) -> Any:
    return getattr(import_module(f"sam2_fast.kernels.{row.module}"), f"{row.name}_kernel")


def _compile(kernel: Any, types: dict[str, str], constants: dict[str, Any]) -> None:
    integers = dict.fromkeys(kernel.arg_names, "i32")
    assert compiled(kernel, integers | types, constants, 90, aligned=False).asm["ptx"]


def test_the_table_has_every_kernel() -> None:
    pytest.importorskip("triton")
    from pathlib import Path

    folder = Path(import_module("sam2_fast.kernels.connected_components").__file__ or "").parent
    kernels = {
        (file.stem, name.removesuffix("_kernel"))
        for file in folder.glob("*.py")
        for name in _kernels(file.stem)
    }
    assert kernels == {(row.module, row.name) for row in KERNELS}


def _kernels(stem: str) -> list[str]:
    return [
        name
        for name in vars(import_module(f"sam2_fast.kernels.{stem}"))
        if name.endswith("_kernel")
    ]
