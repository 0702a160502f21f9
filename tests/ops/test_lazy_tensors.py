"""Tensors whose memory does not hold their numbers: negated, conjugated and zero ones that torch
has not yet computed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from sam2_fast.ops.connected_components import connected_components
from sam2_fast.ops.core.native import is_plain, materialized, native
from sam2_fast.ops.hiera_block import hiera_block
from sam2_fast.ops.mask_postprocess import mask_postprocess
from tests.ops import test_hiera_block
from tests.ops.cases import Odd, collected, listed, numbers

FLOATS = collected("RECORDED")
OPS = {**FLOATS, **collected("FIXED_BY_VALUES")}
SAFE = "a tensor with materialized values"
# They read no memory.
UNCHECKED = (
    "cpu_isa",
    "cuda_architectures",
    "same_members",
    "same_tensors",
    "all_empty",
)


def negated(x: Tensor) -> Tensor:
    """Equal to x; memory holds -x."""
    return torch._neg_view(-x)


def imaginary(x: Tensor) -> Tensor:
    """Equal to x; the imaginary part of a lazily conjugated tensor, with gaps
    between its numbers.
    """
    return torch.complex(torch.zeros_like(x), -x).conj().imag


@pytest.mark.parametrize("lazy", [negated, imaginary])
@pytest.mark.parametrize("backend", ["auto", "cpu"])
@pytest.mark.parametrize("name", OPS)
def test_a_negated_tensor_gives_what_its_numbers_give(
    name: str, backend: str, lazy: Callable[[Tensor], Tensor]
) -> None:
    case = OPS[name]()
    how = (
        {}
        if backend == "auto" or name in ("nms", "preprocess_images, floats")
        else {"backend": backend}
    )
    expected = listed(case.run(*case.other, **how))
    kinds = (torch.float32,) if lazy is imaginary else (torch.float32, torch.uint8)
    places = [i for i, t in enumerate(case.other) if t.dtype in kinds]
    if name in ("connected_components", "small_components"):
        assert not places  # booleans; bytes have a test of their own
    for i in places:
        given = [lazy(t) if j == i else t for j, t in enumerate(case.other)]
        assert given[i].is_neg() and torch.equal(given[i], case.other[i])
        found = listed(case.run(*given, **how))
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), f"tensor {i}"
    given = [lazy(t) if t.dtype in kinds else t for t in case.other]
    assert all(
        torch.equal(a, b) for a, b in zip(listed(case.run(*given, **how)), expected, strict=True)
    )


@pytest.mark.parametrize("name", FLOATS)
def test_a_zero_tensor_gives_what_zeros_give(name: str) -> None:
    case = FLOATS[name]()
    for i in range(0, len(case.other), 5):
        x = case.other[i]
        zero = torch._efficientzerotensor(x.shape, dtype=x.dtype)
        found, expected = (
            listed(case.run(*case.other[:i], z, *case.other[i + 1 :]))
            for z in (zero, torch.zeros_like(x))
        )
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), f"tensor {i}"


def test_masks_of_negated_bytes() -> None:
    masks = (torch.rand(2, 9, 11) < 0.5).to(torch.uint8) * 3
    for a, b in zip(connected_components(negated(masks)), connected_components(masks), strict=True):
        assert torch.equal(a, b)
    sure = masks * 64  # 192: its negative is 64
    assert torch.equal(connected_components(negated(sure))[0], connected_components(sure)[0])


def test_results_are_written_to_memory_that_holds_numbers() -> None:
    masks, made = torch.ones(1, 2, 2, dtype=torch.bool), torch.zeros(1, 2, 2, dtype=torch.int32)
    with pytest.raises(
        ValueError,
        match=r"out: areas: expected memory that holds the numbers, got a lazily negated .*; pass "
        r"torch\.empty",
    ):
        connected_components(masks, out=(made, torch._neg_view(made.clone())))


def test_counts_and_runs_of_negated_logits() -> None:
    logits = numbers((2, 5, 5))[0]
    found, expected = (mask_postprocess(x, (9, 9), 0.0, 0.5) for x in (negated(logits), logits))
    assert torch.equal(found.inner, expected.inner) and torch.equal(found.boxes, expected.boxes)
    assert all((a == b).all() for a, b in zip(found.runs, expected.runs, strict=True))


def test_gradients_pass_through_a_tensor_that_is_resolved() -> None:
    x, weights, *rest = test_hiera_block.case(8, 8, 16, 16, 2, 4, False, batch=1)
    x.requires_grad_()
    hiera_block(torch._neg_view(x), weights, *rest).sum().backward()
    lazy, x.grad = x.grad, None
    hiera_block(-x, weights, *rest).sum().backward()
    assert lazy is not None and torch.equal(lazy, x.grad)


def test_what_may_be_overwritten_is_not_if_it_was_resolved() -> None:
    x, weights, *rest = test_hiera_block.case(8, 8, 16, 16, 2, 4, False, batch=1)
    lazy, before = negated(x), x.clone()
    found = hiera_block(lazy, weights, *rest, overwrite=True)
    assert torch.equal(lazy, before) and torch.equal(found, hiera_block(x, weights, *rest))


def test_ordinary_tensors_are_told_from_the_others() -> None:
    x = torch.ones(2, dtype=torch.complex64)
    strange = [
        torch._neg_view(torch.ones(2)),
        torch._efficientzerotensor((2,)),
        torch.ones(1, device="meta").as_subclass(Odd),
    ]
    assert is_plain(torch.ones(2), torch.nn.Parameter(torch.ones(2))) and not any(
        map(is_plain, strange)
    )
    resolved = materialized((strange[0], [strange[1], x.conj()], 3))
    assert (
        is_plain(resolved[0], resolved[1][0]) and not resolved[1][1].is_conj() and resolved[2] == 3
    )


class Held(NamedTuple):
    """A native class of weights, and the weights that it is made of."""

    hold: Callable[[Any], Any]
    weights: Any


def handed(argument: Any) -> Any:
    """What a native function takes."""
    return argument.hold(argument.weights) if isinstance(argument, Held) else argument


@pytest.mark.parametrize("name", [n for n in OPS if n not in ("nms", "preprocess_images, floats")])
def test_bindings_refuse_memory_that_does_not_hold_the_numbers(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every tensor that the native function gets, arguments and results, one by one."""
    module = native()
    if module is None:
        pytest.skip("sam2_fast._C is not built")
    case, seen = OPS[name](), []
    functions = {
        n: f for n in dir(module) if callable(f := getattr(module, n)) and n not in UNCHECKED
    }
    # Weights are checked when they are held.
    held = [n for n, f in functions.items() if isinstance(f, type)]
    for n, function in functions.items():
        if n in held:
            monkeypatch.setattr(module, n, lambda weights, hold=function: Held(hold, weights))
        else:
            monkeypatch.setattr(
                module,
                n,
                lambda *given, f=function: (seen.append((f, given)), f(*map(handed, given)))[1],
            )
    case.run(*case.other)
    assert len(seen) == 1
    function, given = seen[0]
    leaves, shape = tree_flatten(list(given))
    # Torch negates no booleans.
    leaves = [
        x.view(torch.uint8) if isinstance(x, Tensor) and x.dtype == torch.bool else x
        for x in leaves
    ]
    places = [i for i, x in enumerate(leaves) if isinstance(x, Tensor)]
    assert len(places) > 1
    for i in places:
        changed = [torch._neg_view(x) if j == i else x for j, x in enumerate(leaves)]
        with pytest.raises(
            ValueError,
            match=rf"^\S.*: expected {SAFE}, got a lazily negated one; pass "
            rf"tensor\.resolve_neg\(\)$",
        ):
            function(*map(handed, tree_unflatten(changed, shape)))
    function(*map(handed, given))


def test_the_binding_of_run_lengths_refuses_too() -> None:
    module = native()
    if module is None:
        pytest.skip("sam2_fast._C is not built")
    given: list[Any] = [
        numbers((2, 5, 5))[0],
        *(torch.empty(shape, dtype=torch.int64) for shape in ((2,), (2,), (2, 4))),
    ]
    for i in range(4):
        logits, *out = (torch._neg_view(x) if j == i else x for j, x in enumerate(given))
        with pytest.raises(ValueError, match=f"expected {SAFE}, got a lazily negated one"):
            module.mask_postprocess(
                logits, 9, 9, 9, 9, 0, 0, -0.5, 0.0, 0.5, *out, 1, module.cpu_isa()
            )


def test_bindings_refuse_conjugated_tensors() -> None:
    module = native()
    if module is None:
        pytest.skip("sam2_fast._C is not built")
    masks = torch.ones(1, 2, 2, dtype=torch.complex64)
    out = [torch.empty(1, 2, 2, dtype=torch.int32) for _ in range(2)]
    with pytest.raises(
        ValueError,
        match=rf"^masks: expected {SAFE}, got a lazily conjugated one; pass "
        rf"tensor\.resolve_conj\(\)$",
    ):
        module.connected_components(masks.conj(), *out, 1)


def test_custom_ops_resolve_their_arguments() -> None:
    x, weights, *rest = test_hiera_block.case(8, 8, 16, 16, 2, 4, False, batch=1)
    found = torch.ops.sam2_fast.hiera_block(
        negated(x), [negated(w) for w in weights.flatten()], *rest, 1e-6
    )
    assert torch.equal(found, hiera_block(x, weights, *rest, backend="cpu"))


def test_a_default_device_does_not_move_results() -> None:
    with torch.device("meta"):
        for name, make in OPS.items():
            with torch.device("cpu"):
                case = make()
                expected = listed(case.run(*case.other))
            found = listed(case.run(*case.other))
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), name
