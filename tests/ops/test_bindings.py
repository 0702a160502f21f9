"""Errors of the native module for arguments that do not fit: they name the argument, what was
expected and what was got.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sam2_fast.ops.core.cache import for_cpu
from tests.ops import test_memory_attention
from tests.ops.test_bindings_weights import hiera_weights

BINDINGS = Path(__file__).resolve().parents[2] / "bindings"


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


RUN = {"num_threads": 1, "isa": "portable"}


def hiera_block(
    module: Any, x: Tensor | None = None, out: Tensor | None = None, **changes: Any
) -> None:
    arguments = {"heads": 2, "window": 8, "pool": True, "epsilon": 1e-6}
    module.hiera_block(
        zeros(2, 16, 16, 12) if x is None else x,
        module.HieraBlockWeights(hiera_weights()),
        zeros(2, 8, 8, 24) if out is None else out,
        **arguments | RUN | changes,
    )


def window_attention(module: Any, **changes: Any) -> None:
    arguments = {
        "qkv": zeros(1, 4, 4, 12),
        "pad": zeros(12),
        "out": zeros(1, 4, 4, 4),
        "heads": 1,
        "window": 2,
        "pool": False,
    }
    module.window_attention(**arguments | RUN | changes)


def rope_attention(module: Any, **changes: Any) -> None:
    arguments = {
        "q": zeros(1, 4, 8),
        "k": zeros(1, 8, 8),
        "v": zeros(1, 8, 4),
        "table": zeros(2, 4, 4),
        "out": zeros(1, 4, 4),
        "unrotated": 0,
    }
    module.rope_attention(**arguments | RUN | changes)


def memory_attention(module: Any, **changes: Any) -> None:
    case = test_memory_attention.case()
    m = case.memories
    arguments = {
        "x": case.x,
        "weights": module.MemoryAttentionWeights(for_cpu(case.weights, torch.float32)),
        "table": case.table,
        "maps": m.maps,
        "temporal": case.temporal,
        "map_positions": case.position,
        "slots": m.slots,
        "rows": m.rows,
        "first": m.first,
        "pointers": m.pointers,
        "pointer_positions": m.positions,
        "first_pointer": m.first_pointer,
        "out": zeros(4, 36, 16),
    }
    module.memory_attention(**arguments | RUN | changes)


def connected_components(module: Any, **changes: Any) -> None:
    arguments = {
        "masks": zeros(2, 3, 4, dtype=torch.bool),
        "labels": zeros(2, 3, 4, dtype=torch.int32),
        "areas": zeros(2, 3, 4, dtype=torch.int32),
    }
    module.connected_components(**arguments | {"num_threads": 1} | changes)


def mask_postprocess(module: Any, **changes: Any) -> None:
    arguments = {
        "logits": zeros(2, 5, 5),
        "height": 9,
        "width": 9,
        "canvas_height": 9,
        "canvas_width": 9,
        "top": 0,
        "left": 0,
        "low_threshold": -1.0,
        "threshold": 0.0,
        "high_threshold": 1.0,
        "outer": zeros(2, dtype=torch.int64),
        "inner": zeros(2, dtype=torch.int64),
        "boxes": zeros(2, 4, dtype=torch.int64),
    }
    module.mask_postprocess(**arguments | RUN | changes)


def preprocess(module: Any, **changes: Any) -> None:
    arguments = {
        "pictures": zeros(1, 4, 5, 3, dtype=torch.uint8),
        "bicubic": False,
        "columns_first": False,
        "mean": [0.0] * 3,
        "std": [1.0] * 3,
        "out": zeros(1, 3, 8, 8),
    }
    module.preprocess(**arguments | RUN | changes)


CALLS: list[tuple[Callable[..., None], dict[str, Any], str]] = [
    (hiera_block, {"x": zeros(2, 16, 16)}, "x: expected 4 dimensions, got [2, 16, 16]"),
    (hiera_block, {"x": zeros(2, 16, 16, 13)}, "x: expected [2, 16, 16, 12], got [2, 16, 16, 13]"),
    (
        hiera_block,
        {"x": zeros(2, 16, 16, 12, dtype=torch.int64)},
        "x: expected float32, bfloat16 or float16, got int64",
    ),
    (
        hiera_block,
        {"out": zeros(2, 8, 8, 24).half()},
        "out: expected float32, the dtype of x, got float16",
    ),
    (
        hiera_block,
        {"out": zeros(2, 7, 8, 24)},
        "out: expected size 8 of dimension 1, got [2, 7, 8, 24]",
    ),
    (
        hiera_block,
        {"out": zeros(2, 8, 8, 48)[..., ::2]},
        "out: expected a contiguous tensor, got [2, 8, 8, 24] with strides [3072, 384, 48, 2]",
    ),
    (
        hiera_block,
        {"heads": 5},
        "heads: expected a number that divides 24 channels into heads of an "
        "even number each, got 5",
    ),
    (hiera_block, {"window": 65}, "window: expected 0 to 64, got 65"),
    (
        hiera_block,
        {"window": 7},
        "pool: expected an even window on an even grid, got a window of 7 on 16 x 16 tokens",
    ),
    (
        hiera_block,
        {"x": zeros(1, 8, 8, 12), "out": zeros(1, 8, 8, 24), "pool": False},
        "pool: expected True for weights with a shortcut, got False",
    ),
    (
        window_attention,
        {"qkv": zeros(1, 4, 4, 13)},
        "qkv: expected 3 x heads x head_dim channels for 1 heads, got 13",
    ),
    (
        window_attention,
        {"heads": 4},
        "heads: expected an even number of channels each, up to 1024, got 1",
    ),
    (window_attention, {"pad": zeros(11)}, "pad: expected [12] float32, got [11] float32"),
    (window_attention, {"pad": zeros(12).half()}, "pad: expected [12] float32, got [12] float16"),
    (rope_attention, {"k": zeros(1, 8, 6)}, "k: expected [1, 8, 8], got [1, 8, 6]"),
    (
        rope_attention,
        {"v": zeros(1, 8, 4).bfloat16()},
        "v: expected float32, the dtype of q, got bfloat16",
    ),
    (
        rope_attention,
        {"k": zeros(1, 0, 8), "v": zeros(1, 0, 4)},
        "k: expected 1 or more keys, got 0",
    ),
    (
        rope_attention,
        {"unrotated": 3},
        "k: expected whole maps of as many tokens as q, then the unrotated tokens, got 8 keys for "
        "4 queries and 3 unrotated tokens",
    ),
    (
        memory_attention,
        {"first": [0, 2, 2, 5, 6]},
        "first: expected 5 ascending offsets from 0 to 7, got [0, 2, 2, 5, 6]",
    ),
    (memory_attention, {"rows": [0]}, "rows: expected 7, as many as slots, got 1"),
    (
        memory_attention,
        {"rows": [0, 0, 0, 0, 0, 0, 3]},
        "rows: expected indices of the 3 rows of temporal, got 3",
    ),
    (
        memory_attention,
        {"slots": [-1, 0, 0, 0, 0, 0, 0]},
        "slots: expected indices of the 7 maps, got -1",
    ),
    (
        memory_attention,
        {"maps": [zeros(36, 8)] * 6 + [zeros(36, 8).half()]},
        "maps[6]: expected float32, the dtype of maps[0], got float16",
    ),
    (memory_attention, {"maps": [zeros(36, 7)] * 7}, "maps[0]: expected [36, 8], got [36, 7]"),
    (
        memory_attention,
        {"first": [0, 2, 2, 7, 7], "first_pointer": [0, 3, 3, 3, 10]},
        "first: expected a map or a pointer token for every object, got 0 of both for object 1",
    ),
    (
        memory_attention,
        {"x": zeros(3, 36, 16)},
        "x: expected 1 image or one for each of 4 objects, got 3",
    ),
    (
        connected_components,
        {"masks": zeros(3, 4, dtype=torch.bool)},
        "masks: expected [N, H, W], got [3, 4]",
    ),
    (connected_components, {"masks": zeros(2, 3, 4)}, "masks: expected bool or uint8, got float32"),
    (
        connected_components,
        {"areas": zeros(2, 3, 5, dtype=torch.int32)},
        "areas: expected [2, 3, 4], got [2, 3, 5]",
    ),
    (
        connected_components,
        {"areas": zeros(2, 3, 4, dtype=torch.int64)},
        "areas: expected int32, got int64",
    ),
    (
        connected_components,
        {"areas": zeros(2, 4, 3, dtype=torch.int32).transpose(1, 2)},
        "areas: expected a contiguous tensor, got [2, 3, 4] with strides [12, 1, 3]",
    ),
    (connected_components, {"masks": None}, "masks: expected a torch.Tensor, got NoneType"),
    (mask_postprocess, {"boxes": zeros(2, 4)}, "boxes: expected [2, 4] int64, got [2, 4] float32"),
    (
        mask_postprocess,
        {"top": 1},
        "canvas: expected room for the mask of 9 x 9 at 1 x 0, got 9 x 9",
    ),
    (mask_postprocess, {"height": 0}, "logits, size: expected 1 pixel or more, got 5 x 5, 0 x 9"),
    (
        mask_postprocess,
        {"canvas_height": 2**31, "canvas_width": 9},
        "canvas: expected fewer than 2^31 pixels, got 2147483648 x 9",
    ),
    (
        preprocess,
        {"pictures": zeros(4, 5, 3, dtype=torch.uint8)},
        "pictures: expected [B, H, W, 3] uint8, got [4, 5, 3] uint8",
    ),
    (
        preprocess,
        {"pictures": zeros(1, 4, 5, 3)},
        "pictures: expected [B, H, W, 3] uint8, got [1, 4, 5, 3] float32",
    ),
    (preprocess, {"mean": [0.0]}, "mean, std: expected three numbers each, got 1 and 3"),
    (
        preprocess,
        {"columns_first": True},
        "pictures: expected packed pixels, for bicubic, got strides [60, 15, 3, 1] for bilinear",
    ),
    (preprocess, {"isa": "mmx"}, "isa: expected an instruction set up to .*, got mmx"),
]


@pytest.mark.parametrize(("call", "change", "message"), CALLS, ids=[m for _, _, m in CALLS])
def test_errors_of_arguments(
    module: Any, call: Callable[..., None], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message).replace(r"\.\*", ".*") + "$"):
        call(module, **change)


def test_valid_calls_do_not_raise(module: Any) -> None:
    for call in (
        hiera_block,
        window_attention,
        rope_attention,
        memory_attention,
        connected_components,
        mask_postprocess,
        preprocess,
    ):
        call(module)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m: m.same_members([{}], [], []),
            "groups, names, values: expected equal lengths, got [1, 0, 0]",
        ),
        (lambda m: m.same_members([3], ["a"], [1]), "expected dictionaries, got int"),
        (lambda m: m.same_dictionaries([[]], []), "expected dictionaries, got list"),
        (lambda m: m.same_class_attributes([3], [], []), "expected classes, got int"),
        (
            lambda m: m.same_instances([1], [int], [], b"", []),
            "modules, classes, attributes, lengths: expected equal lengths, got [1, 1, 0, 0]",
        ),
        (
            lambda m: m.same_tensors(Tensor.data_ptr, Tensor._version, [3], [1], [None]),
            "tensors: expected instances of the descriptors' class, got int",
        ),
    ],
)
def test_errors_of_comparison_functions(
    module: Any, call: Callable[[Any], Any], message: str
) -> None:
    with pytest.raises((ValueError, TypeError), match=f"^{re.escape(message)}$"):
        call(module)


def test_error_messages_end_in_a_value() -> None:
    """The last part of a message is the shape, the dtype or the number that was got."""
    paths = [*BINDINGS.glob("*.cpp"), *BINDINGS.glob("*.h")]
    calls = {p: re.findall(r"\brefuse\((.*?)\);", p.read_text(), re.DOTALL) for p in paths}
    assert sum(map(len, calls.values())) > 30
    for path, arguments in calls.items():
        for call in arguments:
            last = re.sub(r"\s+", " ", call).rsplit(",", 1)[-1].strip()
            assert (
                not last.startswith('"')
                or "+" in last
                or last in ('"None"', '"False"')
                or "lazily" in call
            ), f"{path.name}: {call}"
