"""Every op while torch records, transforms or watches: the right numbers for other inputs than the
recorded ones, or a reason.
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
from tests.ops.cases import Case, Tensors, collected, listed, numbers
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


def error(found: Tensor, exact: Tensor) -> float:
    return (found.double() - exact.double()).square().mean().sqrt().item()


def close(found: Any, case: Case) -> None:
    """For `case.other`: an error of at most twice that of torch in the same dtype."""
    torchs = listed(case.run(*case.other, backend="torch"))
    wide = (t.double() if t.is_floating_point() else t for t in case.other)
    exact = listed(
        case.run(*wide, backend="torch") if case.exact is None else case.exact(*case.other)
    )
    assert len(listed(found)) == len(exact)
    for mine, theirs, true in zip(listed(found), torchs, exact, strict=True):
        least = error(true.to(theirs.dtype), true)
        assert mine.shape == true.shape
        assert error(mine, true) <= 2 * max(error(theirs, true), least)


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Fresh memory is full of NaN (integers: of the largest number), also in a recording that is
    run.
    """
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory and torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@pytest.mark.parametrize("record", RECORDERS.values(), ids=RECORDERS)
@pytest.mark.parametrize("make", FLOATS.values(), ids=FLOATS)
def test_a_recording_is_right_for_other_inputs(
    make: Callable[[], Case], record: Callable[..., Any]
) -> None:
    case = make()
    before = listed(case.run(*case.other))
    with torch.no_grad():
        try:
            found = record(Module(case.run), case.example, case.other)
        except torch.onnx.errors.UnsupportedOperatorError as refused:
            # The older exporter has no antialiasing.
            assert "_upsample_bilinear2d_aa" in str(refused) and case.exact is not None
            return
    close(found, case)
    assert all(
        torch.equal(a, b) for a, b in zip(listed(case.run(*case.other)), before, strict=True)
    ), "an eager call changed"


@pytest.mark.parametrize(
    "record",
    [r for n, r in RECORDERS.items() if n not in ONNX],
    ids=[n for n in RECORDERS if n not in ONNX],
)
@pytest.mark.parametrize("make", FIXED.values(), ids=FIXED)
def test_what_depends_on_values_is_recorded_as_one_node(
    make: Callable[[], Case], record: Callable[..., Any]
) -> None:
    case = make()
    expected = listed(case.run(*case.other, backend="torch"))
    assert not all(
        torch.equal(a, b) for a, b in zip(expected, listed(case.run(*case.example)), strict=True)
    )
    found = listed(record(Module(case.run), case.example, case.other))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert all(
        torch.equal(a, b) for a, b in zip(listed(case.run(*case.other)), expected, strict=True)
    ), "an eager call changed"


def reasons(raised: BaseException | None) -> Iterator[str]:
    """What an exporter says, and what it was told."""
    while raised is not None:
        yield f"{type(raised).__name__}: {raised}"
        raised = raised.__cause__ or raised.__context__


@pytest.mark.parametrize("record", ONNX.values(), ids=ONNX)
@pytest.mark.parametrize("make", FIXED.values(), ids=FIXED)
def test_what_depends_on_values_is_no_part_of_an_onnx_file(
    make: Callable[[], Case], record: Callable[..., Any]
) -> None:
    case = make()
    with pytest.raises((BackendError, torch.onnx.OnnxExporterError)) as raised:
        record(Module(case.run), case.example, case.other)
    assert any(
        "BackendError" in r and "ONNX export" in r and "on the result" in r
        for r in reasons(raised.value)
    )


def lists(logits: Tensor, **how: Any) -> Tensor:
    found = mask_postprocess(logits, (20, 20), 0.0, 0.5, **how)
    return found.inner + sum(map(len, found.runs))


@pytest.mark.parametrize(
    "record",
    [jit_trace, recorders.export, recorders.traced_fx, *ONNX.values()],
    ids=["torch.jit.trace", "torch.export", "make_fx", *ONNX],
)
def test_run_lengths_are_no_part_of_a_recording(record: Callable[..., Any]) -> None:
    example, other = numbers((2, 5, 5)), numbers((2, 5, 5), seed=1)
    with pytest.raises((BackendError, torch.onnx.OnnxExporterError)) as raised:
        record(Module(lists), example, other)
    assert any(
        "mask_postprocess" in r and "lists with lengths that depend on the masks" in r
        for r in reasons(raised.value)
    )


@pytest.mark.parametrize("watch", [recorders.counted, recorders.watched])
def test_run_lengths_under_a_watcher(watch: Callable[..., Any]) -> None:
    logits = numbers((2, 5, 5))
    assert torch.equal(watch(Module(lists), logits, logits)[0], lists(*logits, backend="torch"))


def test_run_lengths_in_a_compiled_function_are_computed_between_its_graphs() -> None:
    torch._dynamo.reset()

    def counts(logits: Tensor) -> Tensor:
        return mask_postprocess(2 * logits, (20, 20), 0.0, 0.5).inner + 1

    program, logits = torch.compile(counts, backend="aot_eager"), numbers((2, 5, 5))[0]
    assert torch.equal(program(logits), counts(logits)) and torch.equal(
        program(logits + 1), counts(logits + 1)
    )


# Which no native kernel takes.
@pytest.mark.parametrize("name", [n for n in FLOATS if n != "preprocess_images, floats"])
def test_a_backend_that_was_asked_for_by_name_says_why_it_cannot(name: str) -> None:
    case = FLOATS[name]()
    with pytest.raises(
        BackendError, match=r"cpu refuses: torch.jit.trace is under way, .*Would run: torch"
    ):
        jit_trace(Module(lambda *t: case.run(*t, backend="cpu")), case.example, case.other)


@pytest.mark.parametrize("make", FIXED.values(), ids=FIXED)
def test_no_recording_of_a_definition_that_depends_on_values_even_by_name(
    make: Callable[[], Case],
) -> None:
    case = make()
    with pytest.raises(
        BackendError,
        match=r"torch refuses: torch.jit.trace is under way, and its definition .*Would run: none",
    ):
        jit_trace(Module(lambda *t: case.run(*t, backend="torch")), case.example, case.other)


@pytest.mark.parametrize("make", {**FLOATS, **FIXED}.values(), ids={**FLOATS, **FIXED})
def test_vmap(make: Callable[[], Case]) -> None:
    case = make()
    many = torch.stack([case.example[0], case.other[0]])
    rest = case.other[1:]
    found = listed(torch.vmap(lambda x: case.run(x, *rest))(many))
    for i in range(2):
        close([x[i] for x in found], case._replace(other=(many[i], *rest)))


@pytest.mark.parametrize("forward", ["torch.func.jvp", "dual numbers"])
@pytest.mark.parametrize("name", [n for n in FLOATS if n != "preprocess_images, bytes"])
def test_forward_derivatives(name: str, forward: str) -> None:
    case = FLOATS[name]()
    rest, wide = (
        case.other[1:],
        tuple(t.double() if t.is_floating_point() else t for t in case.other),
    )

    def tangents(x: Tensor, rest: Tensors, **how: Any) -> list[Tensor]:
        def run(x: Tensor) -> Tensors:
            return tuple(listed(case.run(x, *rest, **how)))

        if forward == "torch.func.jvp" or how:
            return listed(torch.func.jvp(run, (x,), (torch.ones_like(x),))[1])
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
            found = [torch.autograd.forward_ad.unpack_dual(y).tangent for y in run(dual)]
        assert all(t is not None for t in found)
        return found

    with sdpa_kernel(
        SDPBackend.MATH
    ):  # torch's fused attention has no forward derivative, and says so
        mine, theirs = tangents(case.other[0], rest), tangents(case.other[0], rest, backend="torch")
        exact = tangents(wide[0], wide[1:], backend="torch")
    for a, b, c in zip(mine, theirs, exact, strict=True):
        assert error(a, c) <= 2 * max(error(b, c), error(c.float(), c))


@pytest.mark.parametrize("name", [n for n in FLOATS if n != "preprocess_images, bytes"])
def test_gradients_of_a_transform_are_those_of_backward(name: str) -> None:
    case = FLOATS[name]()
    x, rest = case.other[0], case.other[1:]

    def total(x: Tensor) -> Tensor:
        return sum((y.square().mean() for y in listed(case.run(x, *rest))), torch.zeros(()))

    total(leaf := x.clone().requires_grad_()).backward()
    assert leaf.grad is not None and leaf.grad.abs().max() > 0
    assert torch.equal(torch.func.grad(total)(x), leaf.grad)


def test_a_compiled_function_may_name_a_backend() -> None:
    """It is called between two graphs."""
    torch._dynamo.reset()
    case = FLOATS["window_attention"]()
    program = torch.compile(lambda *t: 2 * case.run(*t, backend="cpu"), backend="aot_eager")
    assert torch.equal(program(*case.other), 2 * case.run(*case.other, backend="cpu"))


def test_tensors_with_tangents_have_whole_masks_and_boxes() -> None:
    boxes, scores = FIXED["nms"]().other
    with torch.autograd.forward_ad.dual_level():
        dual = [torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)) for x in (boxes, scores)]
        assert torch.equal(nms(*dual, 0.3), nms(boxes, scores, 0.3))


PRODUCTS = {
    "addmm",
    "mm",
    "bmm",
    "mul",
    "convolution",
    "_scaled_dot_product_flash_attention_for_cpu",
}


@pytest.mark.parametrize("make", [FLOATS[n] for n in FLOATS if not n.startswith("preprocess")])
def test_who_watches_sees_the_products(make: Callable[[], Case]) -> None:
    case = make()
    with recorders.Seen() as seen:
        case.run(*case.other)
    with recorders.Seen() as by_name:
        case.run(*case.other, backend="torch")
    assert seen.names == by_name.names and seen.names & PRODUCTS, seen.names


def test_constants_that_are_made_in_a_fake_mode_stay_there() -> None:
    case = FLOATS["preprocess_images, bytes"]()
    wanted = [s + 1 / 64 for s in STD]  # of these, nothing is kept yet
    with torch._subclasses.FakeTensorMode():
        preprocess_images(torch.zeros(1, 16, 16, 3), 16, MEAN, wanted)
    found = preprocess_images(*case.other, 16, MEAN, wanted, backend="torch")
    assert type(found) is Tensor and found.isfinite().all()


def test_who_asks_is_told_what_goes_on() -> None:
    seen: list[str | None] = []

    def look(x: Tensor) -> Tensor:
        seen.append(tracing.recording_reason())
        return x * 2

    x = numbers((3,))
    look(*x)
    with torch.device("cpu"):
        look(*x)
    assert seen == [None, None]
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
        seen.clear()
        RECORDERS[name](Module(look), x, x)
        assert seen and all(word in (reason or "") for reason in seen), (name, seen)
    assert tracing.recording_reason() is None
