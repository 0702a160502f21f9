"""Tensors whose memory does not contain their values: lazily negated or conjugated tensors, and
zero tensors without memory.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
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
from tests.ops.cases import TensorSubclass, as_list, collected, random_tensors

FLOATS = collected("RECORDED")
OPS = {**FLOATS, **collected("FIXED_BY_VALUES")}
SAFE = "a tensor with materialized values"
COMPARISONS = (
    "same_members",
    "same_dictionaries",
    "same_class_attributes",
    "same_instances",
    "same_state",
    "class_versions",
)
UNCHECKED = ("cpu_isa", "cuda_architectures", "same_tensors", *COMPARISONS)
"""Functions of the native module that do not read the memory of tensors."""


def negated(x: Tensor) -> Tensor:
    """A tensor equal to x, whose memory contains -x."""
    return torch._neg_view(-x)


def imaginary(x: Tensor) -> Tensor:
    """A strided tensor equal to x: the imaginary part of a lazily conjugated tensor."""
    return torch.complex(torch.zeros_like(x), -x).conj().imag


@pytest.mark.parametrize("lazy", [negated, imaginary])
@pytest.mark.parametrize("backend", ["auto", "cpu"])
@pytest.mark.parametrize("name", OPS)
def test_negated_tensors_give_the_results_of_their_values(
    name: str, backend: str, lazy: Callable[[Tensor], Tensor]
) -> None:
    case = OPS[name]()
    has_cpu_kernel = name not in ("nms", "preprocess_images, floats")
    kwargs = {"backend": backend} if backend != "auto" and has_cpu_kernel else {}
    expected = as_list(case.run(*case.other, **kwargs))
    dtypes = (torch.float32,) if lazy is imaginary else (torch.float32, torch.uint8)
    indices = [i for i, t in enumerate(case.other) if t.dtype in dtypes]
    if name in ("connected_components", "small_components"):
        assert not indices  # the masks are boolean; another test has byte masks
    for i in indices:
        inputs = [lazy(t) if j == i else t for j, t in enumerate(case.other)]
        assert inputs[i].is_neg() and torch.equal(inputs[i], case.other[i])
        outputs = as_list(case.run(*inputs, **kwargs))
        assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True)), f"tensor {i}"
    inputs = [lazy(t) if t.dtype in dtypes else t for t in case.other]
    outputs = as_list(case.run(*inputs, **kwargs))
    assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))


@pytest.mark.parametrize("name", FLOATS)
def test_zero_tensors_without_memory_give_the_results_of_zeros(name: str) -> None:
    case = FLOATS[name]()
    for i in range(0, len(case.other), 5):
        x = case.other[i]
        zero = torch._efficientzerotensor(x.shape, dtype=x.dtype)
        outputs, expected = (
            as_list(case.run(*case.other[:i], z, *case.other[i + 1 :]))
            for z in (zero, torch.zeros_like(x))
        )
        assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True)), f"tensor {i}"


def test_negated_byte_masks_give_the_results_of_their_values() -> None:
    masks = (torch.rand(2, 9, 11) < 0.5).to(torch.uint8) * 3
    outputs = connected_components(negated(masks))
    assert all(map(torch.equal, outputs, connected_components(masks)))
    large = masks * 64  # 192, of which the negative is 64
    assert torch.equal(connected_components(negated(large))[0], connected_components(large)[0])


def test_a_negated_output_is_refused() -> None:
    masks = torch.ones(1, 2, 2, dtype=torch.bool)
    labels = torch.zeros(1, 2, 2, dtype=torch.int32)
    with pytest.raises(
        ValueError,
        match=r"out: areas: expected memory that holds the numbers, got a lazily negated .*; pass "
        r"torch\.empty",
    ):
        connected_components(masks, out=(labels, torch._neg_view(labels.clone())))


def test_negated_logits_give_the_counts_boxes_and_runs_of_their_values() -> None:
    logits = random_tensors((2, 5, 5))[0]
    output, expected = (mask_postprocess(x, (9, 9), 0.0, 0.5) for x in (negated(logits), logits))
    assert torch.equal(output.inner, expected.inner) and torch.equal(output.boxes, expected.boxes)
    assert all((a == b).all() for a, b in zip(output.runs, expected.runs, strict=True))


def test_gradients_flow_through_a_negated_tensor() -> None:
    x, weights, *rest = test_hiera_block.case(8, 8, 16, 16, 2, 4, False, batch=1)
    x.requires_grad_()
    hiera_block(torch._neg_view(x), weights, *rest).sum().backward()
    lazy, x.grad = x.grad, None
    hiera_block(-x, weights, *rest).sum().backward()
    assert lazy is not None and torch.equal(lazy, x.grad)


def test_a_negated_input_is_not_overwritten() -> None:
    x, weights, *rest = test_hiera_block.case(8, 8, 16, 16, 2, 4, False, batch=1)
    lazy, before = negated(x), x.clone()
    output = hiera_block(lazy, weights, *rest, overwrite=True)
    assert torch.equal(lazy, before) and torch.equal(output, hiera_block(x, weights, *rest))


def test_is_plain_is_false_for_lazy_tensors_and_subclasses() -> None:
    not_plain = [
        torch._neg_view(torch.ones(2)),
        torch._efficientzerotensor((2,)),
        torch.ones(1, device="meta").as_subclass(TensorSubclass),
    ]
    assert is_plain(torch.ones(2), torch.nn.Parameter(torch.ones(2)))
    assert not any(map(is_plain, not_plain))


def test_materialized_resolves_lazy_tensors() -> None:
    zero = torch._efficientzerotensor((2,))
    conjugated = torch.ones(2, dtype=torch.complex64).conj()
    resolved = materialized((torch._neg_view(torch.ones(2)), [zero, conjugated], 3))
    assert is_plain(resolved[0], resolved[1][0])
    assert not resolved[1][1].is_conj()
    assert resolved[2] == 3


class NativeWeights(NamedTuple):
    """A class of the native module, and the argument of its constructor."""

    create: Callable[[Any], Any]
    weights: Any


def created(argument: Any) -> Any:
    """The argument of a native function: for `NativeWeights`, an object of the class."""
    return argument.create(argument.weights) if isinstance(argument, NativeWeights) else argument


def record_calls(module: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any]]:
    """Replaces the functions and classes of the native module; returns the list of calls, to which
    functions append themselves and their arguments.
    """
    calls: list[tuple[Any, Any]] = []

    def recording(function: Any) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            calls.append((function, arguments))
            return function(*map(created, arguments))

        return call

    for name in dir(module):
        member = getattr(module, name)
        if not callable(member) or name in UNCHECKED:
            continue
        # The constructor checks its weights, so that they must be created within each call.
        is_class = isinstance(member, type)
        replacement = partial(NativeWeights, member) if is_class else recording(member)
        monkeypatch.setattr(module, name, replacement)
    return calls


@pytest.mark.parametrize("name", [n for n in OPS if n not in ("nms", "preprocess_images, floats")])
def test_bindings_refuse_each_negated_argument_and_result(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = native()
    if module is None:
        pytest.skip("sam2_fast._C is not built")
    case = OPS[name]()
    calls = record_calls(module, monkeypatch)
    case.run(*case.other)
    assert len(calls) == 1
    function, arguments = calls[0]
    leaves, shape = tree_flatten(list(arguments))
    # Torch cannot negate booleans.
    leaves = [
        x.view(torch.uint8) if isinstance(x, Tensor) and x.dtype == torch.bool else x
        for x in leaves
    ]
    indices = [i for i, x in enumerate(leaves) if isinstance(x, Tensor)]
    assert len(indices) > 1
    for i in indices:
        changed = [torch._neg_view(x) if j == i else x for j, x in enumerate(leaves)]
        with pytest.raises(
            ValueError,
            match=rf"^\S.*: expected {SAFE}, got a lazily negated one; pass "
            rf"tensor\.resolve_neg\(\)$",
        ):
            function(*map(created, tree_unflatten(changed, shape)))
    function(*map(created, arguments))


def test_the_binding_of_mask_postprocess_refuses_each_negated_tensor() -> None:
    module = native()
    if module is None:
        pytest.skip("sam2_fast._C is not built")
    tensors: list[Any] = [
        random_tensors((2, 5, 5))[0],
        *(torch.empty(shape, dtype=torch.int64) for shape in ((2,), (2,), (2, 4))),
    ]
    for i in range(4):
        logits, *out = (torch._neg_view(x) if j == i else x for j, x in enumerate(tensors))
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
    output = torch.ops.sam2_fast.hiera_block(
        negated(x), [negated(w) for w in weights.flatten()], *rest, 1e-6
    )
    assert torch.equal(output, hiera_block(x, weights, *rest, backend="cpu"))


def test_results_do_not_depend_on_the_default_device() -> None:
    with torch.device("meta"):
        for name, make in OPS.items():
            with torch.device("cpu"):
                case = make()
                expected = as_list(case.run(*case.other))
            outputs = as_list(case.run(*case.other))
            assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True)), name
