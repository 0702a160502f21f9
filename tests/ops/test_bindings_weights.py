"""Weights of the native module: their sizes, and errors for weights that do not fit."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from sam2_fast.ops.mask_decoder import cpu_weights
from tests.ops import (
    test_hiera_block,
    test_mask_decoder,
    test_memory_attention,
    test_memory_encoder,
)
from tests.ops.cases import TensorSubclass
from tests.ops.namespaces import namespace_of

Change = Callable[[SimpleNamespace], object]


def hiera_weights(pool: bool = True) -> SimpleNamespace:
    return namespace_of(test_hiera_block.case(16, 16, 12, 24 if pool else 12, 2, 8, pool)[1])


def attention_weights() -> SimpleNamespace:
    return namespace_of(test_memory_attention.case().weights)


def encoder_weights() -> SimpleNamespace:
    return namespace_of(test_memory_encoder.kernel_weights(test_memory_encoder.case()))


def decoder_weights() -> SimpleNamespace:
    return namespace_of(cpu_weights(test_mask_decoder.case().weights, torch.float32))


WEIGHTS: dict[str, tuple[Callable[[], SimpleNamespace], dict[str, int]]] = {
    "HieraBlockWeights": (hiera_weights, {"dim": 12, "dim_out": 24, "hidden": 96}),
    "MemoryAttentionWeights": (
        attention_weights,
        {"dim": 16, "memory_dim": 8, "hidden": 40, "num_layers": 2},
    ),
    "MemoryEncoderWeights": (
        encoder_weights,
        {"dim": 16, "hidden": 40, "memory_dim": 6, "num_blocks": 2},
    ),
    "MaskDecoderWeights": (
        decoder_weights,
        {"dim": 32, "hidden": 40, "iou_hidden": 24, "iou_values": 4, "num_masks": 3},
    ),
}


def leaves(weights: Any, path: str = "weights") -> list[tuple[str, Any, str, Tensor]]:
    """For each tensor: its path, the object that has it, the name of the attribute, the tensor."""
    if isinstance(weights, list):
        return [leaf for i, item in enumerate(weights) for leaf in leaves(item, f"{path}[{i}]")]
    result: list[tuple[str, Any, str, Tensor]] = []
    for field, value in vars(weights).items() if isinstance(weights, SimpleNamespace) else ():
        if isinstance(value, Tensor):
            result.append((f"{path}.{field}", weights, field, value))
        else:
            result += leaves(value, f"{path}.{field}")
    return result


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_have_their_sizes_as_attributes(module: Any, name: str) -> None:
    make, sizes = WEIGHTS[name]
    native_weights = getattr(module, name)(make())
    assert {size: getattr(native_weights, size) for size in sizes} == sizes


CHANGES: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "longer": (lambda t: torch.cat([t, t[:2]]), "expected .*, got \\[[0-9, ]+\\]( float32)?$"),
    "dimensions": (lambda t: t[None], "expected .*, got \\[1, [0-9, ]+\\]( float32)?$"),
    "gaps": (
        lambda t: t.repeat_interleave(2, -1)[..., ::2],
        r"expected a contiguous tensor, got \[[0-9, ]+\] with strides \[[0-9, ]*2\]$",
    ),
    "dtype": (lambda t: t.double(), "expected .*float32.*, got .*float64$"),
    "negated": (lambda t: torch._neg_view(t), "got a lazily negated one"),
    "no tensor": (lambda _: None, "expected a torch.Tensor, got NoneType$"),
    "a subclass": (
        lambda t: t.as_subclass(TensorSubclass),
        "expected a torch.Tensor, got TensorSubclass$",
    ),
}
"""Changes of a tensor, and the end of the error message."""


@pytest.mark.parametrize("kind", CHANGES)
@pytest.mark.parametrize("name", WEIGHTS)
def test_every_weight_is_checked_and_named(module: Any, name: str, kind: str) -> None:
    make, _ = WEIGHTS[name]
    change, message = CHANGES[kind]
    create = getattr(module, name)
    weights = make()
    tensors = leaves(weights)
    assert len(tensors) > 10
    for path, owner, field, tensor in tensors:
        setattr(owner, field, change(tensor))
        with pytest.raises(ValueError, match=message) as raised:
            create(weights)
        # Sizes and dtypes are compared with those of other weights: the error may name the other.
        if kind not in ("longer", "dtype"):
            assert str(raised.value).startswith(f"{path}: "), (path, str(raised.value))
        assert str(raised.value).startswith("weights.")
        setattr(owner, field, tensor)
    create(weights)


def put(path: str, value: Any) -> Change:
    """Replaces the attribute at a path such as layers[1].self_q.weight by `value`; if `value` is a
    function, by its result for the old value.
    """

    def change(weights: SimpleNamespace) -> None:
        *parents, last = re.findall(r"\w+", path)
        owner: Any = weights
        for step in parents:
            owner = owner[int(step)] if step.isdigit() else getattr(owner, step)
        setattr(owner, last, value(getattr(owner, last)) if callable(value) else value)

    return change


def drop(path: str) -> Change:
    """Removes the attribute at `path`."""
    *parents, last = path.split(".")

    def change(weights: SimpleNamespace) -> None:
        owner: Any = weights
        for step in parents:
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


def test_native_weights_read_the_memory_that_parameters_had_when_they_were_created(
    module: Any,
) -> None:
    """Changes in that memory count; tensors that replace the data of a parameter are not read."""
    x, weights, *_ = test_hiera_block.case(8, 8, 12, 12, 2, 4, False)
    weights = weights.mapped(lambda _, w: torch.nn.Parameter(w))
    native_weights = module.HieraBlockWeights(weights)

    def run() -> Tensor:
        out = torch.empty_like(x)
        module.hiera_block(x, native_weights, out, 2, 4, False, 1e-6, 1, "portable")
        return out

    before = run()
    with torch.no_grad():
        weights.qkv.bias.add_(1)
    after = run()
    assert not torch.equal(after, before)
    for parameter in weights.flatten():
        parameter.data = torch.full_like(parameter, torch.nan)
    assert torch.equal(run(), after)
