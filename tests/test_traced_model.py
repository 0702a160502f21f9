"""Parts of the model traced by torch give correct results for other inputs.

Tracing leaves no tensors in the model.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from sam2_fast.model.layers import cached_values
from sam2_fast.ops.core.registry import BackendError
from sam2_fast.ops.memory_attention.triton_kernels import memory_attention_at
from sam2_fast.recording.cache import Graphs
from sam2_fast.types import Features, Points
from sam2_fast.video.predictor import SAM2VideoPredictor
from tests.ops.recorders import (
    RECORDERS,
    Module,
    Tensors,
    compiled,
    dispatched,
    jit_trace,
    traced_fx,
)
from tests.ops.test_tracing import error, poisoned_memory, pytestmark
from tests.video.sessions import small_predictor

__all__ = ["poisoned_memory", "pytestmark"]


class Part(NamedTuple):
    """A part of the model as a function of the model and of tensors of these shapes."""

    run: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...]


def decode(
    model: SAM2VideoPredictor, low: Tensor, mid: Tensor, high: Tensor, offsets: Tensor
) -> Tensors:
    features = Features(low, mid, high)
    return tuple(model.decode(low, features, points_at(offsets), None, multimask=True))


def track(
    model: SAM2VideoPredictor, low: Tensor, mid: Tensor, high: Tensor, offsets: Tensor
) -> Tensors:
    features = Features(low, mid, high)
    return model.track(low, features, points_at(offsets), None, multimask=True)


def points_at(offsets: Tensor) -> Points:
    labels = torch.ones(offsets.shape[:2], dtype=torch.int32)
    return Points(32 + 16 * offsets, labels)


def attend(
    model: SAM2VideoPredictor, low: Tensor, a: Tensor, b: Tensor, c: Tensor, p: Tensor, q: Tensor
) -> Tensor:
    return model.attend(low, [[a, b], [c]], [[0, 1], [2]], [p, q], [[1.0, 2.0], [3.0]], 3)


def encode_memory(
    model: SAM2VideoPredictor, low: Tensor, logits: Tensor, presence: Tensor
) -> Tensor:
    return model.encode_memory(low, logits, presence, binarize=False)


MAP = (1, 256, 4, 4)
FINE = ((1, 64, 8, 8), (1, 32, 16, 16))
PARTS = {
    "image encoder with neck": Part(
        lambda model, images: tuple(model.image_encoder(images)["backbone_fpn"]),
        ((1, 3, 64, 64),),
    ),
    "encode_image": Part(
        lambda model, images: tuple(model.encode_image(images)), ((1, 3, 64, 64),)
    ),
    "mask decoder": Part(decode, (MAP, *FINE, (2, 2, 2))),
    "best mask and pointer": Part(track, (MAP, *FINE, (2, 2, 2))),
    "memory attention": Part(attend, (MAP, (16, 64), (16, 64), (16, 64), (2, 256), (1, 256))),
    "memory encoder": Part(encode_memory, (MAP, (2, 1, 16, 16), (2, 1))),
}
# Slow, and covered by other parts.
EXCLUDED = {("encode_image", "onnx, dynamo"), ("best mask and pointer", "onnx, dynamo")}
# The hooks of FlopCounterMode raise on modules that get views of parameters without gradients.
EXCLUDED |= {(part, "FlopCounterMode") for part in PARTS}


@pytest.fixture(scope="module")
def predictor() -> SAM2VideoPredictor:
    return small_predictor()


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def inputs(part: Part, seed: int) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=generator) for shape in part.shapes)


def as_list(outputs: Any) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def relative_error(output: Tensor, exact: Tensor) -> float:
    return error(output, exact) / error(torch.zeros_like(exact), exact)


def assert_as_exact_as_torch(
    outputs: Any,
    part: Part,
    model: SAM2VideoPredictor,
    tensors: Tensors,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The largest error against float64 is at most twice that of the definitions in float32."""
    exact = as_list(part.run(copy.deepcopy(model).double(), *(t.double() for t in tensors)))
    with monkeypatch.context() as patch:
        patch.setattr("sam2_fast.ops.core.native.native", lambda: None)
        in_torch = as_list(part.run(model, *tensors))
    assert len(as_list(outputs)) == len(exact)
    pairs = list(zip(as_list(outputs), exact, strict=True))
    assert all(actual.shape == truth.shape for actual, truth in pairs)
    rounded = max(relative_error(truth.float(), truth) for truth in exact)
    reference = max(map(relative_error, in_torch, exact))
    assert max(relative_error(*pair) for pair in pairs) <= 2 * max(reference, rounded)


@pytest.mark.parametrize(
    ("name", "recorder"), [(p, r) for p in PARTS for r in RECORDERS if (p, r) not in EXCLUDED]
)
def test_a_traced_part_is_correct_for_other_inputs(
    name: str, recorder: str, predictor: SAM2VideoPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = PARTS[name]
    example = inputs(part, 1)
    other = inputs(part, 2)
    before = as_list(part.run(predictor, *other))
    module = Module(lambda *tensors: part.run(predictor, *tensors), predictor)
    outputs = RECORDERS[recorder](module, example, other)
    assert_as_exact_as_torch(outputs, part, predictor, other, monkeypatch)
    after = as_list(part.run(predictor, *other))
    # Tracing does not change the results of eager calls.
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize("name", ["image encoder with neck", "mask decoder"])
@pytest.mark.parametrize("record", [jit_trace, traced_fx, dispatched, compiled])
def test_tracing_the_first_call_leaves_no_tensors_in_the_model(
    name: str, record: Callable[..., Any]
) -> None:
    part = PARTS[name]
    model = small_predictor()
    other = inputs(part, 2)
    record(Module(lambda *tensors: part.run(model, *tensors), model), inputs(part, 1), other)
    assert all(value is None for value in cached_values(model))
    outputs = as_list(part.run(model, *other))
    expected = as_list(part.run(small_predictor(), *other))
    assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))


@pytest.mark.parametrize("kind", ["weights", "autocast"])
def test_a_trace_follows_its_parameters(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors that eager calls cache (positions, matrices in half precision) are not traced."""
    model = small_predictor()
    part = PARTS["image encoder with neck"]
    (images,) = inputs(part, 2)
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast", cache_enabled=False):
        part.run(model, images)
        trunk = model.image_encoder.trunk
        traced = torch.jit.trace(Module(trunk, trunk), inputs(part, 1), check_trace=False)
        before = traced(images)
        for p in trunk.parameters():
            p.mul_(1.25)
        after = traced(images)
        monkeypatch.setattr("sam2_fast.ops.core.native.native", lambda: None)
        expected = trunk(images)
    assert not any(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    for a, b, old in zip(after, expected, before, strict=True):
        assert (a - b).abs().max() <= (old - b).abs().max() / 20


def test_a_trace_accepts_another_number_of_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The best mask is selected for each prompt."""
    part = PARTS["best mask and pointer"]
    model = small_predictor()
    module = Module(lambda *tensors: part.run(model, *tensors), model)
    traced = torch.jit.trace(module, inputs(part, 1), check_trace=False)
    more = inputs(part._replace(shapes=(*part.shapes[:3], (5, 2, 2))), 3)
    assert_as_exact_as_torch(traced(*more), part, model, more, monkeypatch)


def test_kernels_with_addresses_as_arguments_cannot_be_traced() -> None:
    others: Any = [None] * 5
    module = Module(lambda x: memory_attention_at(x, *others))
    with pytest.raises(BackendError, match=r"memory_attention_at: torch\.jit.trace is under way"):
        jit_trace(module, (torch.ones(1),), (torch.ones(1),))


def test_no_cuda_graph_is_captured_while_torch_traces() -> None:
    reasons: list[str | None] = []
    on_gpu: Any = SimpleNamespace(device=torch.device("cuda"))

    def ask_for_reason(x: Tensor) -> Tensor:
        reasons.append(Graphs().refuses(small_predictor(), on_gpu))
        return x * 2

    for record in (jit_trace, dispatched):
        record(Module(ask_for_reason), (torch.ones(1),), (torch.ones(1),))
    assert reasons == ["torch.jit.trace is under way", "a TorchDispatchMode is active"]
