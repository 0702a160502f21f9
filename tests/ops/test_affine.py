"""Scale and shift by channel: errors of every backend against the definition in float64, and the
behaviour of the public function. This file is the template of an op's tests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from sam2_fast.ops.affine import AffineWeights, affine, affine_reference
from sam2_fast.ops.core.cache import for_cpu
from sam2_fast.ops.core.layout import Leaf
from sam2_fast.ops.core.native import native
from sam2_fast.ops.core.registry import BackendError
from tests.ops.cases import Case, case_of
from tests.ops.errors import Errors

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = ((1, 1), (3, 5), (2, 3, 4, 24), (33, 129), (7,), (200, 64))


class Inputs(NamedTuple):
    """Arguments of the op."""

    x: Tensor
    weights: AffineWeights

    def to(self, dtype: torch.dtype) -> Inputs:
        return Inputs(self.x.to(dtype), self.weights.to(dtype))


def call_native(module: Any) -> None:
    """One call of the function of the native module, with plain arguments."""
    x, weights = torch.ones(2, 8), AffineWeights(torch.ones(8), torch.ones(8))
    out = torch.empty(2, 8)
    module.affine(
        x=x, weights=module.AffineWeights(weights), out=out, num_threads=1, isa="portable"
    )


def case(*shape: int, seed: int = 0) -> Inputs:
    generator = torch.Generator().manual_seed(seed)

    def make(leaf: Leaf, size: tuple[int, ...]) -> Tensor:
        del leaf
        return torch.randn(size, generator=generator)

    weights = AffineWeights.build(make, C=shape[-1])
    return Inputs(torch.randn(shape, generator=generator), weights)


def affine_case() -> Case:
    x, weights = case(3, 4, 6)
    run = lambda x, *w, **kwargs: affine(x, AffineWeights.unflatten(w), **kwargs)  # noqa: E731
    return case_of(run, x, *weights.flatten())


RECORDED: dict[str, Callable[[], Case]] = {"affine": affine_case}
ON_A_DEVICE: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "affine": (affine, case(33, 129).to(torch.bfloat16)),
}


def native_output(inputs: Inputs, isa: str, threads: int = 2) -> Tensor:
    """The output of the native kernel, written to memory that is full of NaN."""
    module: Any = native()
    rows = inputs.x.reshape(-1, inputs.x.shape[-1])
    out = torch.full_like(rows, torch.nan)
    native_weights = module.AffineWeights(for_cpu(inputs.weights, torch.float32))
    module.affine(rows, native_weights, out, threads, isa)
    return out.view(inputs.x.shape)


@pytest.mark.proves("reference", "affine:cpu")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_errs_at_most_twice_as_much_as_torch(isa: str, dtype: torch.dtype) -> None:
    for shape in SHAPES:
        errors = Errors()
        for seed in range(4):
            inputs = case(*shape, seed=seed).to(dtype)
            exact = affine_reference(*inputs.to(torch.float64))
            errors.add([native_output(inputs, isa)], [affine_reference(*inputs)], [exact])
        errors.check(shape)


def test_results_do_not_depend_on_threads_or_other_rows(isa: str) -> None:
    inputs = case(33, 13)
    expected = native_output(inputs, isa, threads=1)
    for threads in (2, 3, 7):
        assert torch.equal(native_output(inputs, isa, threads), expected)
    for i in range(33):
        row = inputs._replace(x=inputs.x[i])
        assert torch.equal(native_output(row, isa), expected[i])


def test_nan_stays_in_its_position(isa: str) -> None:
    inputs = case(4, 6)
    clean = native_output(inputs, isa)
    inputs.x[1, 5] = torch.nan
    output = native_output(inputs, isa)
    assert output[1, 5].isnan() and output.isnan().sum() == 1
    assert torch.equal(output.nan_to_num(0), clean.where(~output.isnan(), 0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_auto_runs_the_native_kernel_on_a_cpu_and_keeps_the_dtype(dtype: torch.dtype) -> None:
    x, weights = case(33, 129)
    output = affine(x.to(dtype), weights)
    assert output.dtype == dtype and torch.equal(
        output, affine(x.to(dtype), weights, backend="cpu")
    )


@pytest.mark.parametrize("shape", [(0, 5), (2, 0, 5), (3, 0)])
def test_empty_inputs_give_empty_outputs(shape: tuple[int, ...]) -> None:
    assert affine(*case(*shape)).shape == shape


def test_strides_do_not_change_results() -> None:
    x, weights = case(8, 6, 10)
    expected = affine(x, weights)
    for strided in (x.mT.contiguous().mT, x.repeat_interleave(2, -1)[..., ::2]):
        assert not strided.is_contiguous() and torch.equal(affine(strided, weights), expected)
    strided_weights = weights.mapped(lambda _, w: w.repeat_interleave(2)[::2])
    assert torch.equal(affine(x, strided_weights), expected)


@pytest.mark.parametrize("backend", ["auto", "cpu", "torch"])
def test_lazily_negated_tensors_are_resolved(backend: str) -> None:
    x, weights = case(5, 6)
    lazy = weights.mapped(lambda _, w: torch._neg_view(-w))
    output = affine(torch._neg_view(-x), lazy, backend=backend)
    assert torch.equal(output, affine(x, weights, backend=backend))


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("name", ["weight", "bias"])
def test_exchanged_or_modified_weights_change_the_result(name: str, backend: str) -> None:
    x, weights = case(5, 6)
    before = affine(x, weights, backend=backend)
    exchanged = AffineWeights(weights.bias, weights.weight)
    assert not torch.equal(affine(x, exchanged, backend=backend), before)
    other = weights.with_tensors({name: getattr(weights, name) + 1})
    output = affine(x, other, backend=backend)
    assert not torch.equal(output, before)
    getattr(weights, name).add_(1)
    assert torch.equal(affine(x, weights, backend=backend), output)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda x, w: (x.double(), w), "dtypes are float32, float64; supported: bfloat16, .*"),
        (lambda x, w: (x, w.to(torch.float64)), "dtypes are float32, float64; .*"),
        (lambda x, w: (x.requires_grad_(), w), "inputs require grad .*"),
        (lambda x, w: (x.to("meta"), w), "tensors are on cpu, meta; all must be on one cpu device"),
        (lambda x, w: (x[:0], w), "x is empty; at least one element is required"),
    ],
)
def test_a_refusal_names_its_reason(change: Callable[..., Any], reason: str) -> None:
    with pytest.raises(BackendError, match=f"^affine: cpu refuses: {reason}. Would run: torch$"):
        affine(*change(*case(5, 6)), backend="cpu")


def test_arguments_that_do_not_fit_are_named() -> None:
    x, weights = case(5, 6)
    for invalid in (x[:, :5], x[0, 0]):
        with pytest.raises(ValueError, match=r"x: expected shape \[\.\.\., 6\], got \("):
            affine(invalid, weights)
    with pytest.raises(ValueError, match=r"weights.bias: expected shape \(6,\), \[C\], got \(5,\)"):
        AffineWeights(weights.weight, weights.bias[:5])


def test_the_binding_checks_its_arguments() -> None:
    module: Any = native()
    x, weights = case(5, 6)
    native_weights = module.AffineWeights(weights)
    assert native_weights.channels == 6
    for invalid in (x[0], x[:, :5], x.double(), torch._neg_view(x), x.mT.contiguous().mT):
        for inputs in ((invalid, native_weights, x), (x, native_weights, invalid)):
            with pytest.raises(ValueError, match=r"^(x|out): expected "):
                module.affine(*inputs, 1, "portable")
    for name in ("weight", "bias"):
        tensor = getattr(weights, name)
        for change in (tensor[:5], tensor.half(), tensor[None], tensor.repeat(2)[::2]):
            fields = {"weight": weights.weight, "bias": weights.bias, name: change}
            with pytest.raises(ValueError, match=r"^weights\.(weight|bias): expected "):
                module.AffineWeights(type("Fields", (), fields))


def test_opcheck_passes() -> None:
    x, weights = case(3, 4, 6)
    inputs = x, weights.flatten()
    torch.library.opcheck(torch.ops.sam2_fast.affine.default, inputs)
    assert torch.equal(torch.ops.sam2_fast.affine(*inputs), affine(x, weights))


def test_gradients_flow_through_the_definition() -> None:
    x, weights = case(3, 4, 6)
    tensors = [x, *weights.flatten()]
    affine(x.requires_grad_(), weights.mapped(lambda _, w: w.requires_grad_())).sum().backward()
    expected = weights.weight.expand(3, 4, 6), x.sum((0, 1)), torch.full((6,), 12.0)
    for tensor, gradient in zip(tensors, expected, strict=True):
        assert tensor.grad is not None and torch.allclose(tensor.grad, gradient)
