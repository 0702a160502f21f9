"""Named weights: their layout, checks and order, and values derived from them, which are computed
once, and again after a change.
"""

from __future__ import annotations

import ast
import copy
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from sam2_fast.ops.core import cache as cache_module
from sam2_fast.ops.core.autocast import in_compute_dtype
from sam2_fast.ops.core.cache import Cache, derive
from sam2_fast.ops.core.weights import (
    Linear,
    Norm,
    Weights,
    group,
    linear,
    norm,
    optional,
    repeated,
    sequence,
    tensor,
)
from sam2_fast.ops.hiera_block import HieraBlockWeights, hiera_block
from sam2_fast.ops.mask_decoder import mask_decoder
from sam2_fast.ops.memory_attention import memory_attention
from sam2_fast.ops.memory_encoder import memory_encoder
from tests.ops import (
    test_hiera_block,
    test_mask_decoder,
    test_memory_attention,
    test_memory_encoder,
)
from tests.ops.cases import as_list

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True, eq=False)
class Attention(Weights):
    q: Linear = linear("D", "C")
    out: Linear = linear("C", "D")


@dataclass(frozen=True, eq=False)
class Example(Weights, root=True):
    layers: tuple[Attention, ...] = repeated(Attention, C="C", D="C/2")
    pair: tuple[Linear, ...] = sequence(Linear, {"O": "A", "I": 9}, {"O": "B", "I": "3*A"})
    one: Attention = group(Attention, C="C", D="C")
    scale: Tensor = tensor("C", 1)
    last: Norm = norm("C")


@dataclass(frozen=True, eq=False)
class WithOption(Weights, root=True):
    main: Linear = linear("C", "C")
    shortcut: Linear | None = optional(Linear, O="C", I="C")


def example(count: int = 2) -> Example:
    return Example.build(lambda _, shape: torch.randn(shape), count=count, C=8, A=3, B=5)


def test_names_shapes_and_order_are_those_of_the_declaration() -> None:
    weights = example()
    names = [name for name, _ in weights.named()]
    assert names[:3] == ["layers[0].q.weight", "layers[0].q.bias", "layers[0].out.weight"]
    assert names[-3:] == ["scale", "last.weight", "last.bias"]
    assert len(set(names)) == len(names) == 19
    shapes = {name: tuple(x.shape) for name, x in weights.named()}
    assert shapes["layers[1].q.weight"] == (4, 8)
    assert shapes["pair[1].weight"] == (5, 9)
    assert shapes["scale"] == (8, 1)
    assert {leaf.name for leaf in weights.leaves() if leaf.matrix} == {
        name for name in names if name.endswith("weight") and name != "last.weight"
    }
    rebuilt = Example.unflatten(weights.flatten())
    assert all(a is b for a, b in zip(weights.flatten(), rebuilt.flatten(), strict=True))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        (
            "layers[1].q.weight",
            (3, 8),
            r"weights.layers\[1\].q.weight: expected shape \(4, 8\), \[C / 2, C\], got \(3, 8\)",
        ),
        (
            "pair[1].weight",
            (5, 8),
            r"weights.pair\[1\].weight: expected shape \(5, 9\), \[B, 3 A\], got \(5, 8\)",
        ),
        ("scale", (8,), r"weights.scale: expected 2 dimensions, \[C, 1\], got \(8,\)"),
    ],
)
def test_a_shape_that_does_not_fit_is_named(
    name: str, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        example().with_tensors({name: torch.zeros(shape)})


def test_unknown_names_and_counts_are_refused() -> None:
    weights = example()
    with pytest.raises(KeyError, match="layers"):
        weights.with_tensors({"layers[9].q.weight": torch.zeros(4, 8)})
    with pytest.raises(
        ValueError,
        match="expected 11 tensors and 4 for each repeated or optional part for Example, got 18",
    ):
        Example.unflatten(weights.flatten()[:-1])
    with pytest.raises(ValueError, match=r"got 11"):
        Example.unflatten(example(1).flatten()[4:])
    with pytest.raises(ValueError, match="got 6"):
        WithOption.unflatten([torch.zeros(2, 2), torch.zeros(2)] * 3)


def test_optional_parts_may_be_absent() -> None:
    tensors = [torch.zeros(2, 2), torch.zeros(2)] * 2
    assert WithOption.unflatten(tensors[:2]).shortcut is None
    assert WithOption.unflatten(tensors).shortcut is not None


def test_pytree_functions_of_torch_map_the_tensors() -> None:
    weights = example()
    doubled = tree_map_only(Tensor, lambda x: 2 * x, [weights, 3])[0]
    assert isinstance(doubled, Example) and torch.equal(
        doubled.layers[1].q.bias, 2 * weights.layers[1].q.bias
    )


def exchanged(weights: Weights, first: str, second: str) -> Weights:
    """`weights` with the tensors `first` and `second` exchanged."""
    tensors = dict(weights.named())
    assert tensors[first].shape == tensors[second].shape
    return weights.with_tensors({first: tensors[second], second: tensors[first]})


# For each op: the function, its arguments, and the names of two weights of equal shape.
CASES = {
    "hiera_block": (
        hiera_block,
        lambda: test_hiera_block.case(*test_hiera_block.SHAPES["whole windows"]),
        "norm1.weight",
        "norm2.weight",
    ),
    "memory_attention": (
        memory_attention,
        test_memory_attention.case,
        "layers[0].self_q.weight",
        "layers[0].self_v.weight",
    ),
    "memory_encoder": (
        memory_encoder,
        test_memory_encoder.case,
        "blocks[0].norm.bias",
        "blocks[0].gamma",
    ),
    "mask_decoder": (
        mask_decoder,
        test_mask_decoder.case,
        "layers[1].norm3.weight",
        "layers[1].norm4.bias",
    ),
}


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("op", CASES)
def test_exchanging_two_tensors_of_equal_shape_changes_the_result(op: str, backend: str) -> None:
    run, case, first, second = CASES[op]
    inputs = list(case())
    index = next(i for i, x in enumerate(inputs) if isinstance(x, Weights))
    before = as_list(run(*inputs, backend=backend))
    inputs[index] = exchanged(inputs[index], first, second)
    after = as_list(run(*inputs, backend=backend))
    assert any((a - b).abs().max() > 1e-3 for a, b in zip(before, after, strict=True))


def test_weights_are_accessed_by_name_and_not_by_index() -> None:
    """In ops, the model, CUDA graphs, bindings and native code."""
    accesses = []
    for folder in ("sam2_fast/ops", "sam2_fast/model", "sam2_fast/recording"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Subscript) and ast.unparse(node.value) in ("weights", "w"):
                    accesses.append(f"{path.name}:{node.lineno}: {ast.unparse(node)}")
    for folder in ("bindings", "csrc"):
        for path in [p for p in (ROOT / folder).rglob("*") if p.suffix in {".h", ".cpp", ".cu"}]:
            numbered = re.findall(
                r"\b(?:weights|tensors|parameters|views)\w*(?:\[\s*\d|\.at\()", path.read_text()
            )
            if path.name not in ("resample.h", "preprocess.cpp"):  # weights of an interpolation
                accesses += [f"{path.name}: {access}" for access in numbered]
    assert not accesses


def test_derived_values_are_computed_once_for_each_name() -> None:
    weights, calls = example(), []

    def make() -> int:
        calls.append(1)
        return len(calls)

    assert [derive(weights, name, make) for name in ("a", "a", "b")] == [1, 1, 2]
    assert derive(example(), "a", make) == 3, "values are not shared with other weights"


def test_derived_values_are_computed_again_after_a_write_and_not_cached_for_gradients() -> None:
    parameter, calls = nn.Parameter(torch.ones(8)), []
    weights = example().with_tensors({"last.bias": parameter})

    def make() -> float:
        calls.append(1)
        return float(parameter.detach().sum())

    with torch.no_grad():
        assert derive(weights, "sum", make) == derive(weights, "sum", make) == 8.0
        parameter.mul_(3)
        assert derive(weights, "sum", make) == 24.0
    assert len(calls) == 2
    assert derive(weights, "sum", make) == derive(weights, "sum", make) == 24.0
    assert len(calls) == 4


def test_weights_are_checked_again_after_the_data_of_a_parameter_is_replaced() -> None:
    parameter = nn.Parameter(torch.ones(8), requires_grad=False)
    weights = example().with_tensors({"last.bias": parameter})
    parameter.data = torch.ones(7)
    with pytest.raises(ValueError, match=r"weights.last.bias: expected shape \(8,\)"):
        weights.facts()


def test_values_computed_during_a_capture_are_not_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = example()
    assert derive(weights, "before", lambda: 1) == 1
    computations = Cache.computations
    monkeypatch.setattr(cache_module, "capturing", lambda tensor: True)
    assert derive(weights, "before", lambda: 2) == 1
    assert derive(weights, "during", lambda: 3) == 3
    monkeypatch.undo()
    assert derive(weights, "during", lambda: 4) == 4
    assert Cache.computations != computations, "other streams have to wait for the value"


def pickle_copy(weights: Weights) -> Any:
    return pickle.loads(pickle.dumps(weights))


@pytest.mark.parametrize("op", CASES)
@pytest.mark.parametrize("copy_of", [copy.copy, copy.deepcopy, pickle_copy])
def test_weights_can_be_copied_after_kernels_used_them(
    op: str, copy_of: Callable[..., Any]
) -> None:
    run, case, *_ = CASES[op]
    inputs = list(case())
    index = next(i for i, x in enumerate(inputs) if isinstance(x, Weights))
    before = as_list(run(*inputs, backend="cpu"))
    weights = inputs[index]
    other = inputs[index] = copy_of(weights)
    assert type(other) is type(weights) and weights.state.cached_values
    assert other.state is not weights.state and not other.state.cached_values
    pairs = zip(other.flatten(), weights.flatten(), strict=True)
    assert all(torch.equal(a, b) and (a is b) == (copy_of is copy.copy) for a, b in pairs)
    assert all(map(torch.equal, before, as_list(run(*inputs, backend="cpu"))))


@torch.inference_mode()
def test_values_derived_under_autocast_are_cached_in_inference_mode() -> None:
    weights, calls = example(), []
    with torch.inference_mode(False):
        weights = weights.mapped(lambda _, x: x.clone())
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(3):
            half_weights = in_compute_dtype(weights)
            assert half_weights.first_matrix.dtype == torch.bfloat16
            derive(half_weights, "counted", lambda: calls.append(1))
    assert len(calls) == 1


def test_results_follow_weights_that_are_modified_in_place() -> None:
    x, weights, *rest = test_hiera_block.case(*test_hiera_block.SHAPES["whole windows"])
    assert isinstance(weights, HieraBlockWeights)
    before = hiera_block(x, weights, *rest)
    weights.fc2.bias.add_(1.0)
    assert torch.allclose(hiera_block(x, weights, *rest), before + 1.0, atol=1e-5)


def test_fields_are_known_before_the_first_instance() -> None:
    """Else a fresh process could not compile: torch.compile cannot trace `dataclasses.fields`."""
    code = (
        "import sam2_fast.ops as ops\n"
        "from sam2_fast.ops.core.weights import _SPECS, Weights\n"
        "kinds = [getattr(ops, name) for name in ops.__all__ if name.endswith('Weights')]\n"
        "assert len(kinds) > 5 and all(kind in _SPECS for kind in kinds), kinds\n"
        "nested = [kind for kind in Weights.__subclasses__() if kind not in _SPECS]\n"
        "assert not nested, nested\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
