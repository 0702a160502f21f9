"""What the native module says of arguments that do not fit: which one, what it expected, and what
it got.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from sam2_fast.ops.core.cache import for_cpu
from sam2_fast.ops.core.native import native
from sam2_fast.ops.mask_decoder import cpu_weights
from tests.ops import (
    test_hiera_block,
    test_mask_decoder,
    test_memory_attention,
    test_memory_encoder,
)
from tests.ops.cases import Odd
from tests.ops.namespaces import namespace_of

BINDINGS = Path(__file__).resolve().parents[2] / "bindings"
Change = Callable[[SimpleNamespace], object]


@pytest.fixture(scope="module")
def module() -> Any:
    found = native()
    if found is None:
        pytest.skip("sam2_fast._C is not built")
    return found


def hiera(pool: bool = True) -> SimpleNamespace:
    return namespace_of(test_hiera_block.case(16, 16, 12, 24 if pool else 12, 2, 8, pool)[1])


def attention() -> SimpleNamespace:
    return namespace_of(test_memory_attention.case().weights)


def encoder() -> SimpleNamespace:
    return namespace_of(test_memory_encoder.ready(test_memory_encoder.case()))


def decoder() -> SimpleNamespace:
    return namespace_of(cpu_weights(test_mask_decoder.case().weights, torch.float32))


WEIGHTS: dict[str, tuple[Callable[[], SimpleNamespace], dict[str, int]]] = {
    "HieraBlockWeights": (hiera, {"dim": 12, "dim_out": 24, "hidden": 96}),
    "MemoryAttentionWeights": (
        attention,
        {"dim": 16, "memory_dim": 8, "hidden": 40, "num_layers": 2},
    ),
    "MemoryEncoderWeights": (encoder, {"dim": 16, "hidden": 40, "memory_dim": 6, "num_blocks": 2}),
    "MaskDecoderWeights": (
        decoder,
        {"dim": 32, "hidden": 40, "iou_hidden": 24, "iou_values": 4, "num_masks": 3},
    ),
}


def leaves(weights: Any, name: str = "weights") -> list[tuple[str, Any, str, Tensor]]:
    """Of every tensor its name, the object that has it, and as what."""
    if isinstance(weights, list):
        return [found for i, item in enumerate(weights) for found in leaves(item, f"{name}[{i}]")]
    found: list[tuple[str, Any, str, Tensor]] = []
    for field, value in vars(weights).items() if isinstance(weights, SimpleNamespace) else ():
        if isinstance(value, Tensor):
            found.append((f"{name}.{field}", weights, field, value))
        else:
            found += leaves(value, f"{name}.{field}")
    return found


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_tell_their_sizes(module: Any, name: str) -> None:
    make, sizes = WEIGHTS[name]
    held = getattr(module, name)(make())
    assert {size: getattr(held, size) for size in sizes} == sizes


KINDS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "longer": (lambda t: torch.cat([t, t[:2]]), "expected .*, got \\[[0-9, ]+\\]( float32)?$"),
    "dimensions": (lambda t: t[None], "expected .*, got \\[1, [0-9, ]+\\]( float32)?$"),
    "gaps": (
        lambda t: t.repeat_interleave(2, -1)[..., ::2],
        r"expected a contiguous tensor, got \[[0-9, ]+\] with strides \[[0-9, ]*2\]$",
    ),
    "dtype": (lambda t: t.double(), "expected .*float32.*, got .*float64$"),
    "negated": (lambda t: torch._neg_view(t), "got a lazily negated one"),
    "no tensor": (lambda _: None, "expected a torch.Tensor, got NoneType$"),
    "a subclass": (lambda t: t.as_subclass(Odd), "expected a torch.Tensor, got Odd$"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", WEIGHTS)
def test_every_weight_is_checked_and_named(module: Any, name: str, kind: str) -> None:
    make, _ = WEIGHTS[name]
    change, words = KINDS[kind]
    hold = getattr(module, name)
    weights = make()
    where = leaves(weights)
    assert len(where) > 10
    for path, owner, field, tensor in where:
        setattr(owner, field, change(tensor))
        with pytest.raises(ValueError, match=words) as raised:
            hold(weights)
        # the size of some weights is what others are compared with, and a dtype may be the first
        # one's
        if kind not in ("longer", "dtype"):
            assert str(raised.value).startswith(f"{path}: "), (path, str(raised.value))
        assert str(raised.value).startswith("weights.")
        setattr(owner, field, tensor)
    hold(weights)


def put(path: str, value: Any) -> Change:
    """Replace what is at a path such as layers[1].self_q.weight; a function makes the new value of
    the old one.
    """

    def change(weights: SimpleNamespace) -> None:
        *way, last = re.findall(r"\w+", path)
        owner: Any = weights
        for step in way:
            owner = owner[int(step)] if step.isdigit() else getattr(owner, step)
        setattr(owner, last, value(getattr(owner, last)) if callable(value) else value)

    return change


def drop(path: str) -> Change:
    *way, last = path.split(".")

    def change(weights: SimpleNamespace) -> None:
        owner: Any = weights
        for step in way:
            owner = getattr(owner, step)
        delattr(owner, last)

    return change


MESSAGES: list[tuple[str, Change, str]] = [
    (
        "HieraBlockWeights",
        drop("fc1"),
        "weights: expected an attribute fc1, got an object of type types.SimpleNamespace",
    ),
    (
        "HieraBlockWeights",
        drop("proj.bias"),
        "weights.proj: expected an attribute bias, got an object of type types.SimpleNamespace",
    ),
    (
        "HieraBlockWeights",
        put("norm2.bias", lambda t: t[1:]),
        "weights.norm2.bias: expected [24] float32, got [23] float32",
    ),
    (
        "HieraBlockWeights",
        put("norm2.bias", Tensor.half),
        "weights.norm2.bias: expected [24] float32, got [24] float16",
    ),
    (
        "HieraBlockWeights",
        put("fc2.weight", Tensor.t),
        "weights.fc2.weight: expected a contiguous tensor, got [96, 24] with strides [1, 96]",
    ),
    (
        "HieraBlockWeights",
        put("fc1.weight", lambda t: t[1:]),
        "weights.fc1.weight: expected a multiple of 2 rows up to 16384, got [95, 24]",
    ),
    (
        "HieraBlockWeights",
        put("fc1.weight", lambda t: t[0]),
        "weights.fc1.weight: expected 2 dimensions, got [24]",
    ),
    (
        "HieraBlockWeights",
        put("proj.weight", Tensor.bfloat16),
        "weights.proj.weight: expected float32, the dtype of weights.qkv.weight, got bfloat16",
    ),
    (
        "HieraBlockWeights",
        put("qkv.weight", Tensor.int),
        "weights.qkv.weight: expected float32, bfloat16 or float16, got int32",
    ),
    (
        "HieraBlockWeights",
        put("shortcut", None),
        "weights.shortcut: expected a layer from 12 to 24 channels, got None",
    ),
    (
        "MemoryAttentionWeights",
        put("layers[1].self_q.weight", lambda t: t[:, :8].contiguous()),
        "weights.layers[1].self_q.weight: expected [16, 16], got [16, 8]",
    ),
    ("MemoryAttentionWeights", put("layers", []), "weights.layers: expected 1 or more, got 0"),
    (
        "MemoryAttentionWeights",
        put("layers", None),
        "weights.layers: expected a sequence, got NoneType",
    ),
    (
        "MemoryAttentionWeights",
        put("layers[0].k.weight", lambda t: torch.cat([t, t, t], 1)),
        "weights.layers[0].k.weight: expected a multiple of 2 columns up to 16, got [16, 24]",
    ),
    (
        "MemoryEncoderWeights",
        put("convolutions", lambda c: c[:3]),
        "weights.convolutions: expected 4, got 3",
    ),
    (
        "MemoryEncoderWeights",
        put("convolutions[2].weight", lambda t: t[:, 1:].contiguous()),
        "weights.convolutions[2].weight: expected [10, 54], got [10, 53]",
    ),
    (
        "MemoryEncoderWeights",
        put("convolutions[0].weight", Tensor.half),
        "weights.convolutions[0].weight: expected [4, 9] float32, got [4, 9] float16",
    ),
    (
        "MemoryEncoderWeights",
        put("blocks[1].gamma", lambda t: t[None]),
        "weights.blocks[1].gamma: expected [16] float32, got [1, 16] float32",
    ),
    (
        "MemoryEncoderWeights",
        put("blocks[1].fc1.weight", Tensor.half),
        "weights.blocks[1].fc1.weight: expected float32, the dtype of "
        "weights.convolutions[2].weight, got float16",
    ),
    ("MaskDecoderWeights", put("layers", lambda c: c[:1]), "weights.layers: expected 2, got 1"),
    (
        "MaskDecoderWeights",
        put("layers[1].image_to_token.out.weight", lambda t: t[1:]),
        "weights.layers[1].image_to_token.out.weight: expected [32, 16], got [31, 16]",
    ),
    (
        "MaskDecoderWeights",
        put("masks[2].linear3.bias", lambda t: t[1:]),
        "weights.masks[2].linear3.bias: expected [4] float32, got [3] float32",
    ),
    ("MaskDecoderWeights", put("masks", []), "weights.masks: expected 1 or more, got 0"),
    (
        "MaskDecoderWeights",
        put("up2.weight", lambda t: t[1:]),
        "weights.up2.weight: expected [16, 8], got [15, 8]",
    ),
]


@pytest.mark.parametrize(("name", "change", "message"), MESSAGES, ids=[m for _, _, m in MESSAGES])
def test_errors_of_weights(module: Any, name: str, change: Change, message: str) -> None:
    weights = copy.deepcopy(WEIGHTS[name][0]())
    change(weights)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        getattr(module, name)(weights)


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


def block(
    module: Any, pool: bool = True, x: Tensor | None = None, out: Tensor | None = None, **how: Any
) -> None:
    given = {
        "heads": 2,
        "window": 8,
        "pool": pool,
        "epsilon": 1e-6,
        "num_threads": 1,
        "isa": "portable",
    } | how
    x = zeros(2, 16, 16, 12) if x is None else x
    module.hiera_block(
        x,
        module.HieraBlockWeights(hiera(pool)),
        zeros(2, 8, 8, 24) if out is None else out,
        **given,
    )


def window(module: Any, **how: Any) -> None:
    given = {
        "qkv": zeros(1, 4, 4, 12),
        "pad": zeros(12),
        "out": zeros(1, 4, 4, 4),
        "heads": 1,
        "window": 2,
        "pool": False,
    }
    module.window_attention(**given | {"num_threads": 1, "isa": "portable"} | how)


def rope(module: Any, **how: Any) -> None:
    given = {
        "q": zeros(1, 4, 8),
        "k": zeros(1, 8, 8),
        "v": zeros(1, 8, 4),
        "table": zeros(2, 4, 4),
        "out": zeros(1, 4, 4),
        "unrotated": 0,
    }
    module.rope_attention(**given | {"num_threads": 1, "isa": "portable"} | how)


def memory(module: Any, **how: Any) -> None:
    case = test_memory_attention.case()
    m = case.memories
    given = {
        "x": case.x,
        "weights": module.MemoryAttentionWeights(for_cpu(case.weights, torch.float32)),
        "table": case.table,
        "maps": m.maps,
        "temporal": case.temporal,
        "map_positions": case.place,
        "slots": m.slots,
        "rows": m.rows,
        "first": m.first,
        "pointers": m.pointers,
        "pointer_positions": m.positions,
        "first_pointer": m.first_pointer,
        "out": zeros(4, 36, 16),
        "num_threads": 1,
        "isa": "portable",
    }
    module.memory_attention(**given | how)


def masks(module: Any, **how: Any) -> None:
    given = {
        "masks": zeros(2, 3, 4, dtype=torch.bool),
        "labels": zeros(2, 3, 4, dtype=torch.int32),
        "areas": zeros(2, 3, 4, dtype=torch.int32),
    }
    module.connected_components(**given | {"num_threads": 1} | how)


def judge(module: Any, **how: Any) -> None:
    given = {
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
        "num_threads": 1,
        "isa": "portable",
    }
    module.mask_postprocess(**given | how)


def resize(module: Any, **how: Any) -> None:
    given = {
        "pictures": zeros(1, 4, 5, 3, dtype=torch.uint8),
        "bicubic": False,
        "columns_first": False,
        "mean": [0.0] * 3,
        "std": [1.0] * 3,
    }
    module.preprocess(
        **given | {"out": zeros(1, 3, 8, 8), "num_threads": 1, "isa": "portable"} | how
    )


CALLS: list[tuple[Callable[..., None], dict[str, Any], str]] = [
    (block, {"x": zeros(2, 16, 16)}, "x: expected 4 dimensions, got [2, 16, 16]"),
    (block, {"x": zeros(2, 16, 16, 13)}, "x: expected [2, 16, 16, 12], got [2, 16, 16, 13]"),
    (
        block,
        {"x": zeros(2, 16, 16, 12, dtype=torch.int64)},
        "x: expected float32, bfloat16 or float16, got int64",
    ),
    (
        block,
        {"out": zeros(2, 8, 8, 24).half()},
        "out: expected float32, the dtype of x, got float16",
    ),
    (block, {"out": zeros(2, 7, 8, 24)}, "out: expected size 8 of dimension 1, got [2, 7, 8, 24]"),
    (
        block,
        {"out": zeros(2, 8, 8, 48)[..., ::2]},
        "out: expected a contiguous tensor, got [2, 8, 8, 24] with strides [3072, 384, 48, 2]",
    ),
    (
        block,
        {"heads": 5},
        "heads: expected a number that divides 24 channels into heads of an "
        "even number each, got 5",
    ),
    (block, {"window": 65}, "window: expected 0 to 64, got 65"),
    (
        block,
        {"window": 7},
        "pool: expected an even window on an even grid, got a window of 7 on 16 x 16 tokens",
    ),
    (
        lambda module, **_: module.hiera_block(
            zeros(1, 8, 8, 12),
            module.HieraBlockWeights(hiera()),
            zeros(1, 8, 8, 24),
            2,
            8,
            False,
            1e-6,
            1,
            "portable",
        ),
        {},
        "pool: expected True for weights with a shortcut, got False",
    ),
    (
        window,
        {"qkv": zeros(1, 4, 4, 13)},
        "qkv: expected 3 x heads x head_dim channels for 1 heads, got 13",
    ),
    (window, {"heads": 4}, "heads: expected an even number of channels each, up to 1024, got 1"),
    (window, {"pad": zeros(11)}, "pad: expected [12] float32, got [11] float32"),
    (window, {"pad": zeros(12).half()}, "pad: expected [12] float32, got [12] float16"),
    (rope, {"k": zeros(1, 8, 6)}, "k: expected [1, 8, 8], got [1, 8, 6]"),
    (rope, {"v": zeros(1, 8, 4).bfloat16()}, "v: expected float32, the dtype of q, got bfloat16"),
    (rope, {"k": zeros(1, 0, 8), "v": zeros(1, 0, 4)}, "k: expected 1 or more keys, got 0"),
    (
        rope,
        {"unrotated": 3},
        "k: expected whole maps of as many tokens as q, then the unrotated tokens, got 8 keys for "
        "4 queries and 3 unrotated tokens",
    ),
    (
        memory,
        {"first": [0, 2, 2, 5, 6]},
        "first: expected 5 ascending offsets from 0 to 7, got [0, 2, 2, 5, 6]",
    ),
    (memory, {"rows": [0]}, "rows: expected 7, as many as slots, got 1"),
    (
        memory,
        {"rows": [0, 0, 0, 0, 0, 0, 3]},
        "rows: expected indices of the 3 rows of temporal, got 3",
    ),
    (memory, {"slots": [-1, 0, 0, 0, 0, 0, 0]}, "slots: expected indices of the 7 maps, got -1"),
    (
        memory,
        {"maps": [zeros(36, 8)] * 6 + [zeros(36, 8).half()]},
        "maps[6]: expected float32, the dtype of maps[0], got float16",
    ),
    (memory, {"maps": [zeros(36, 7)] * 7}, "maps[0]: expected [36, 8], got [36, 7]"),
    (
        memory,
        {"first": [0, 2, 2, 7, 7], "first_pointer": [0, 3, 3, 3, 10]},
        "first: expected a map or a pointer token for every object, got 0 of both for object 1",
    ),
    (memory, {"x": zeros(3, 36, 16)}, "x: expected 1 image or one for each of 4 objects, got 3"),
    (masks, {"masks": zeros(3, 4, dtype=torch.bool)}, "masks: expected [N, H, W], got [3, 4]"),
    (masks, {"masks": zeros(2, 3, 4)}, "masks: expected bool or uint8, got float32"),
    (
        masks,
        {"areas": zeros(2, 3, 5, dtype=torch.int32)},
        "areas: expected [2, 3, 4], got [2, 3, 5]",
    ),
    (masks, {"areas": zeros(2, 3, 4, dtype=torch.int64)}, "areas: expected int32, got int64"),
    (
        masks,
        {"areas": zeros(2, 4, 3, dtype=torch.int32).transpose(1, 2)},
        "areas: expected a contiguous tensor, got [2, 3, 4] with strides [12, 1, 3]",
    ),
    (masks, {"masks": None}, "masks: expected a torch.Tensor, got NoneType"),
    (judge, {"boxes": zeros(2, 4)}, "boxes: expected [2, 4] int64, got [2, 4] float32"),
    (judge, {"top": 1}, "canvas: expected room for the mask of 9 x 9 at 1 x 0, got 9 x 9"),
    (judge, {"height": 0}, "logits, size: expected 1 pixel or more, got 5 x 5, 0 x 9"),
    (
        judge,
        {"canvas_height": 2**31, "canvas_width": 9},
        "canvas: expected fewer than 2^31 pixels, got 2147483648 x 9",
    ),
    (
        resize,
        {"pictures": zeros(4, 5, 3, dtype=torch.uint8)},
        "pictures: expected [B, H, W, 3] uint8, got [4, 5, 3] uint8",
    ),
    (
        resize,
        {"pictures": zeros(1, 4, 5, 3)},
        "pictures: expected [B, H, W, 3] uint8, got [1, 4, 5, 3] float32",
    ),
    (resize, {"mean": [0.0]}, "mean, std: expected three numbers each, got 1 and 3"),
    (
        resize,
        {"columns_first": True},
        "pictures: expected packed pixels, for bicubic, got strides [60, 15, 3, 1] for bilinear",
    ),
    (resize, {"isa": "mmx"}, "isa: expected an instruction set up to .*, got mmx"),
]


@pytest.mark.parametrize(("call", "change", "message"), CALLS, ids=[m for _, _, m in CALLS])
def test_errors_of_arguments(
    module: Any, call: Callable[..., None], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message).replace(r"\.\*", ".*") + "$"):
        call(module, **change)


def test_calls_that_fit(module: Any) -> None:
    for call in (block, window, rope, memory, masks, judge, resize):
        call(module)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m: m.same_members([{}], [], []),
            "groups, names, values: expected equal lengths, got [1, 0, 0]",
        ),
        (lambda m: m.same_members([3], ["a"], [1]), "groups: expected dictionaries, got int"),
        (lambda m: m.all_empty([[]]), "dictionaries: expected dictionaries, got list"),
        (
            lambda m: m.same_tensors(Tensor.data_ptr, Tensor._version, [3], [1], [None]),
            "tensors: expected instances of the descriptors' class, got int",
        ),
    ],
)
def test_errors_of_comparisons(module: Any, call: Callable[[Any], Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=f"^{re.escape(message)}$"):
        call(module)


def test_held_weights_stay_where_they_are(module: Any) -> None:
    """The parameter's own memory, whose numbers may change; not that of another tensor that it
    later stands for.
    """
    case = test_hiera_block.case(8, 8, 12, 12, 2, 4, False)
    weights = case[1].mapped(lambda _, w: torch.nn.Parameter(w))
    held = module.HieraBlockWeights(weights)

    def run() -> Tensor:
        out = torch.empty_like(case[0])
        module.hiera_block(case[0], held, out, 2, 4, False, 1e-6, 1, "portable")
        return out

    first = run()
    with torch.no_grad():
        weights.qkv.bias.add_(1)
    changed = run()
    assert not torch.equal(changed, first)
    for parameter in weights.flatten():
        parameter.data = torch.full_like(parameter, torch.nan)
    assert torch.equal(run(), changed)


def test_no_message_ends_in_words_alone() -> None:
    """What was got is printed: a shape, a dtype, a number."""
    paths = [*BINDINGS.glob("*.cpp"), *BINDINGS.glob("*.h")]
    calls = {p: re.findall(r"\brefuse\((.*?)\);", p.read_text(), re.DOTALL) for p in paths}
    assert sum(map(len, calls.values())) > 30
    for path, found in calls.items():
        for call in found:
            last = re.sub(r"\s+", " ", call).rsplit(",", 1)[-1].strip()
            assert (
                not last.startswith('"')
                or "+" in last
                or last in ('"None"', '"False"')
                or "lazily" in call
            ), f"{path.name}: {call}"
