"""Every op while torch records, transforms or intercepts operations: results are right for other
inputs than the recorded ones, or the op raises with a reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sam2_fast.ops.core import tracing
from sam2_fast.ops.core.registry import BackendError
from sam2_fast.ops.mask_postprocess import mask_postprocess
from sam2_fast.ops.nms import nms
from sam2_fast.ops.preprocess import preprocess_images
from tests.ops import recorders
from tests.ops.cases import Case, Tensors, as_list, collected, random_tensors
from tests.ops.recorders import ONNX, RECORDERS, Module, jit_trace

pytestmark = [
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)


FLOATS: dict[str, Callable[[], Case]] = collected("RECORDED")
FIXED: dict[str, Callable[[], Case]] = collected("FIXED_BY_VALUES")


def error(output: Tensor, exact: Tensor) -> float:
    """Root mean square error."""
    return (output.double() - exact.double()).square().mean().sqrt().item()


def in_float64(tensors: Tensors) -> Tensors:
    """Floating-point tensors in float64, the others as they are."""
    return tuple(t.double() if t.is_floating_point() else t for t in tensors)


def assert_errs_at_most_twice_as_much_as_torch(output: Any, case: Case) -> None:
    """Compares the output for `case.other` with torch in the same dtype."""
    reference = as_list(case.run(*case.other, backend="torch"))
    if case.exact is None:
        exact = as_list(case.run(*in_float64(case.other), backend="torch"))
    else:
        exact = as_list(case.exact(*case.other))
    for kernel_output, torch_output, exact_output in zip(
        as_list(output), reference, exact, strict=True
    ):
        assert kernel_output.shape == exact_output.shape
        rounding_error = error(exact_output.to(torch_output.dtype), exact_output)
        torch_error = error(torch_output, exact_output)
        assert error(kernel_output, exact_output) <= 2 * max(torch_error, rounding_error)


def are_equal(outputs: Any, expected: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(as_list(outputs), as_list(expected), strict=True))


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Uninitialized memory is filled with NaN (integers: with the largest number), also while a
    recording runs.
    """
    previous = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory and torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(previous[0], warn_only=previous[1])


@pytest.mark.parametrize("record", RECORDERS.values(), ids=RECORDERS)
@pytest.mark.parametrize("make", FLOATS.values(), ids=FLOATS)
def test_a_recording_is_right_for_other_inputs(
    make: Callable[[], Case], record: Callable[..., Any]
) -> None:
    case = make()
    before = case.run(*case.other)
    with torch.no_grad():
        try:
            output = record(Module(case.run), case.example, case.other)
        except torch.onnx.errors.UnsupportedOperatorError as unsupported:
            # The older exporter does not support antialiasing.
            assert "_upsample_bilinear2d_aa" in str(unsupported) and case.exact is not None
            return
    assert_errs_at_most_twice_as_much_as_torch(output, case)
    assert are_equal(case.run(*case.other), before), "the result of an eager call changed"


@pytest.mark.parametrize(
    "record",
    [r for n, r in RECORDERS.items() if n not in ONNX],
    ids=[n for n in RECORDERS if n not in ONNX],
)
@pytest.mark.parametrize("make", FIXED.values(), ids=FIXED)
def test_an_op_whose_definition_depends_on_values_is_recorded_as_one_node(
    make: Callable[[], Case], record: Callable[..., Any]
) -> None:
    case = make()
    expected = case.run(*case.other, backend="torch")
    assert not are_equal(expected, case.run(*case.example))
    assert are_equal(record(Module(case.run), case.example, case.other), expected)
    assert are_equal(case.run(*case.other), expected), "the result of an eager call changed"


def reasons(error: BaseException | None) -> Iterator[str]:
    """Type and message of an exporter's error, and of the errors that caused it."""
    while error is not None:
        yield f"{type(error).__name__}: {error}"
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize("record", ONNX.values(), ids=ONNX)
@pytest.mark.parametrize("make", FIXED.values(), ids=FIXED)
def test_an_op_whose_definition_depends_on_values_cannot_be_exported_to_onnx(
    make: Callable[[], Case], record: Callable[..., Any]
) -> None:
    case = make()
    with pytest.raises((BackendError, torch.onnx.OnnxExporterError)) as raised:
        record(Module(case.run), case.example, case.other)
    assert any(
        "BackendError" in r and "ONNX export" in r and "on the result" in r
        for r in reasons(raised.value)
    )


def inner_and_runs(logits: Tensor, **kwargs: Any) -> Tensor:
    """A tensor that depends on the lengths of run lengths."""
    output = mask_postprocess(logits, (20, 20), 0.0, 0.5, **kwargs)
    return output.inner + sum(map(len, output.runs))


@pytest.mark.parametrize(
    "record",
    [jit_trace, recorders.export, recorders.traced_fx, *ONNX.values()],
    ids=["torch.jit.trace", "torch.export", "make_fx", *ONNX],
)
def test_run_lengths_cannot_be_recorded(record: Callable[..., Any]) -> None:
    example, other = random_tensors((2, 5, 5)), random_tensors((2, 5, 5), seed=1)
    with pytest.raises((BackendError, torch.onnx.OnnxExporterError)) as raised:
        record(Module(inner_and_runs), example, other)
    assert any(
        "mask_postprocess" in r and "lists with lengths that depend on the masks" in r
        for r in reasons(raised.value)
    )


@pytest.mark.parametrize("watch", [recorders.counted, recorders.watched])
def test_run_lengths_can_be_computed_under_a_mode(watch: Callable[..., Any]) -> None:
    logits = random_tensors((2, 5, 5))
    output = watch(Module(inner_and_runs), logits, logits)[0]
    assert torch.equal(output, inner_and_runs(*logits, backend="torch"))


def test_run_lengths_break_the_graph_of_a_compiled_function() -> None:
    torch._dynamo.reset()

    def counts(logits: Tensor) -> Tensor:
        return mask_postprocess(2 * logits, (20, 20), 0.0, 0.5).inner + 1

    program = torch.compile(counts, backend="aot_eager")
    logits = random_tensors((2, 5, 5))[0]
    assert torch.equal(program(logits), counts(logits))
    assert torch.equal(program(logits + 1), counts(logits + 1))


# No native kernel supports floating-point images.
@pytest.mark.parametrize("name", [n for n in FLOATS if n != "preprocess_images, floats"])
def test_a_named_backend_refuses_to_be_recorded(name: str) -> None:
    case = FLOATS[name]()
    with pytest.raises(
        BackendError, match=r"cpu refuses: torch.jit.trace is under way, .*Would run: torch"
    ):
        jit_trace(Module(lambda *t: case.run(*t, backend="cpu")), case.example, case.other)


@pytest.mark.parametrize("make", FIXED.values(), ids=FIXED)
def test_a_named_definition_that_depends_on_values_refuses_to_be_recorded(
    make: Callable[[], Case],
) -> None:
    case = make()
    with pytest.raises(
        BackendError,
        match=r"torch refuses: torch.jit.trace is under way, and its definition .*Would run: none",
    ):
        jit_trace(Module(lambda *t: case.run(*t, backend="torch")), case.example, case.other)


@pytest.mark.parametrize("make", {**FLOATS, **FIXED}.values(), ids={**FLOATS, **FIXED})
def test_vmap_over_the_first_tensor(make: Callable[[], Case]) -> None:
    case = make()
    batch = torch.stack([case.example[0], case.other[0]])
    rest = case.other[1:]
    outputs = as_list(torch.vmap(lambda x: case.run(x, *rest))(batch))
    for i in range(2):
        inputs = case._replace(other=(batch[i], *rest))
        assert_errs_at_most_twice_as_much_as_torch([x[i] for x in outputs], inputs)


@pytest.mark.parametrize("forward", ["torch.func.jvp", "dual numbers"])
@pytest.mark.parametrize("name", [n for n in FLOATS if n != "preprocess_images, bytes"])
def test_forward_derivatives_err_at_most_twice_as_much_as_those_of_torch(
    name: str, forward: str
) -> None:
    case = FLOATS[name]()

    def tangents(tensors: Tensors, **kwargs: Any) -> list[Tensor]:
        """Derivatives of the outputs in the direction of ones, by the first tensor."""
        x, *rest = tensors

        def run(x: Tensor) -> Tensors:
            return tuple(as_list(case.run(x, *rest, **kwargs)))

        if forward == "torch.func.jvp" or kwargs:
            return as_list(torch.func.jvp(run, (x,), (torch.ones_like(x),))[1])
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
            outputs = [torch.autograd.forward_ad.unpack_dual(y).tangent for y in run(dual)]
        assert all(t is not None for t in outputs)
        return outputs

    # Torch's fused attention has no forward derivative and raises.
    with sdpa_kernel(SDPBackend.MATH):
        actual = tangents(case.other)
        reference = tangents(case.other, backend="torch")
        exact = tangents(in_float64(case.other), backend="torch")
    for a, b, c in zip(actual, reference, exact, strict=True):
        assert error(a, c) <= 2 * max(error(b, c), error(c.float(), c))


@pytest.mark.parametrize("name", [n for n in FLOATS if n != "preprocess_images, bytes"])
def test_torch_func_grad_equals_backward(name: str) -> None:
    case = FLOATS[name]()
    x, rest = case.other[0], case.other[1:]

    def loss(x: Tensor) -> Tensor:
        return sum((y.square().mean() for y in as_list(case.run(x, *rest))), torch.zeros(()))

    leaf = x.clone().requires_grad_()
    loss(leaf).backward()
    assert leaf.grad is not None and leaf.grad.abs().max() > 0
    assert torch.equal(torch.func.grad(loss)(x), leaf.grad)


def test_a_named_backend_breaks_the_graph_of_a_compiled_function() -> None:
    torch._dynamo.reset()
    case = FLOATS["window_attention"]()
    program = torch.compile(lambda *t: 2 * case.run(*t, backend="cpu"), backend="aot_eager")
    assert torch.equal(program(*case.other), 2 * case.run(*case.other, backend="cpu"))


def test_nms_accepts_tensors_with_tangents() -> None:
    boxes, scores = FIXED["nms"]().other
    with torch.autograd.forward_ad.dual_level():
        dual = [torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)) for x in (boxes, scores)]
        assert torch.equal(nms(*dual, 0.3), nms(boxes, scores, 0.3))


ATTENTION = "_scaled_dot_product_flash_attention_for_cpu"
PRODUCTS = {"addmm", "mm", "bmm", "mul", "convolution", ATTENTION}


@pytest.mark.parametrize("make", [FLOATS[n] for n in FLOATS if not n.startswith("preprocess")])
def test_a_dispatch_mode_sees_the_operators_of_the_definition(make: Callable[[], Case]) -> None:
    case = make()
    with recorders.OperatorNames() as operators:
        case.run(*case.other)
    with recorders.OperatorNames() as expected:
        case.run(*case.other, backend="torch")
    assert operators.names == expected.names and operators.names & PRODUCTS, operators.names


def test_constants_computed_in_a_fake_mode_are_not_cached() -> None:
    case = FLOATS["preprocess_images, bytes"]()
    std = [s + 1 / 64 for s in STD]  # values that are in no cache yet
    with torch._subclasses.FakeTensorMode():
        preprocess_images(torch.zeros(1, 16, 16, 3), 16, MEAN, std)
    output = preprocess_images(*case.other, 16, MEAN, std, backend="torch")
    assert type(output) is Tensor and output.isfinite().all()


def test_recording_reason_names_what_torch_does() -> None:
    observed: list[str | None] = []

    def run(x: Tensor) -> Tensor:
        observed.append(tracing.recording_reason())
        return x * 2

    x = random_tensors((3,))
    run(*x)
    with torch.device("cpu"):
        run(*x)
    assert observed == [None, None]
    words = {
        "torch.jit.trace": "jit.trace",
        "torch.export": "torch.export",
        "make_fx": "DispatchMode",
        "FlopCounterMode": "DispatchMode",
        "TorchFunctionMode": "FunctionMode",
        "functionalize": "torch.func",
        "onnx, torchscript": "ONNX",
        "onnx, dynamo": "ONNX",
    }
    for name, word in words.items():
        observed.clear()
        RECORDERS[name](Module(run), x, x)
        assert observed and all(word in (reason or "") for reason in observed), (name, observed)
    assert tracing.recording_reason() is None
