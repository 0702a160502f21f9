"""Parts of the model recorded by torch: right for other inputs than the recorded ones, and nothing
stays behind in the model.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
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
from tests.video.recorded import small_predictor

__all__ = ["poisoned_memory", "pytestmark"]


class Part(NamedTuple):
    """A part of the model as a function of the model and of tensors of these shapes."""

    run: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...]


def decode(
    model: SAM2VideoPredictor, low: Tensor, mid: Tensor, high: Tensor, where: Tensor
) -> Tensors:
    labels = torch.ones(where.shape[:2], dtype=torch.int32)
    return tuple(
        model.decode(
            low, Features(low, mid, high), Points(32 + 16 * where, labels), None, multimask=True
        )
    )


def track(
    model: SAM2VideoPredictor, low: Tensor, mid: Tensor, high: Tensor, where: Tensor
) -> Tensors:
    labels = torch.ones(where.shape[:2], dtype=torch.int32)
    return model.track(
        low, Features(low, mid, high), Points(32 + 16 * where, labels), None, multimask=True
    )


def attend(
    model: SAM2VideoPredictor, low: Tensor, a: Tensor, b: Tensor, c: Tensor, p: Tensor, q: Tensor
) -> Tensor:
    return model.attend(low, [[a, b], [c]], [[0, 1], [2]], [p, q], [[1.0, 2.0], [3.0]], 3)


def encode_memory(
    model: SAM2VideoPredictor, low: Tensor, logits: Tensor, presence: Tensor
) -> Tensor:
    return model.encode_memory(low, logits, presence, binarize=False)


MAP, FINE = (1, 256, 4, 4), ((1, 64, 8, 8), (1, 32, 16, 16))
PARTS = {
    "image encoder with neck": Part(
        lambda model, images: model.image_encoder(images), ((1, 3, 64, 64),)
    ),
    "encode_image": Part(
        lambda model, images: tuple(model.encode_image(images)), ((1, 3, 64, 64),)
    ),
    "mask decoder": Part(decode, (MAP, *FINE, (2, 2, 2))),
    "best mask and pointer": Part(track, (MAP, *FINE, (2, 2, 2))),
    "memory attention": Part(attend, (MAP, (16, 64), (16, 64), (16, 64), (2, 256), (1, 256))),
    "memory encoder": Part(encode_memory, (MAP, (2, 1, 16, 16), (2, 1))),
}
# Seconds, and parts of others.
LEFT_OUT = {
    ("encode_image", "onnx, dynamo"),
    ("best mask and pointer", "onnx, dynamo"),
}
# Its hooks raise on modules that get views of parameters without gradients.
LEFT_OUT |= {(part, "FlopCounterMode") for part in PARTS}


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


def listed(found: Any) -> list[Tensor]:
    return [found] if isinstance(found, Tensor) else list(found)


def as_exact_as_torch(
    found: Any,
    part: Part,
    model: SAM2VideoPredictor,
    given: Tensors,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An error of at most twice that of the definitions in float32, against float64."""
    exact = listed(part.run(copy.deepcopy(model).double(), *(t.double() for t in given)))
    with monkeypatch.context() as patch:
        patch.setattr("sam2_fast.ops.core.native.native", lambda: None)
        torchs = listed(part.run(model, *given))
    assert len(listed(found)) == len(exact)
    for mine, theirs, true in zip(listed(found), torchs, exact, strict=True):
        assert mine.shape == true.shape and error(mine, true) <= 2 * max(
            error(theirs, true), error(true.float(), true)
        )


@pytest.mark.parametrize(
    ("name", "recorder"), [(p, r) for p in PARTS for r in RECORDERS if (p, r) not in LEFT_OUT]
)
def test_a_recorded_part_is_right_for_other_inputs(
    name: str, recorder: str, predictor: SAM2VideoPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = PARTS[name]
    example, other = inputs(part, 1), inputs(part, 2)
    before = listed(part.run(predictor, *other))
    found = RECORDERS[recorder](
        Module(lambda *given: part.run(predictor, *given), predictor), example, other
    )
    as_exact_as_torch(found, part, predictor, other, monkeypatch)
    after = listed(part.run(predictor, *other))
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True)), (
        "an eager call changed"
    )


@pytest.mark.parametrize("name", ["image encoder with neck", "mask decoder"])
@pytest.mark.parametrize("record", [jit_trace, traced_fx, dispatched, compiled])
def test_a_first_call_that_is_recorded_leaves_nothing_in_the_model(
    name: str, record: Callable[..., Any]
) -> None:
    part = PARTS[name]
    fresh, other = small_predictor(), inputs(PARTS[name], 2)
    record(Module(lambda *given: part.run(fresh, *given), fresh), inputs(part, 1), other)
    assert all(kept is None for kept in cached_values(fresh))
    expected = listed(part.run(small_predictor(), *other))
    assert all(
        torch.equal(a, b) for a, b in zip(listed(part.run(fresh, *other)), expected, strict=True)
    )


@pytest.mark.parametrize("kind", ["weights", "autocast"])
def test_a_trace_follows_its_parameters(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an eager call has kept of them, position and narrow matrices, is not part of a trace."""
    model, part = small_predictor(), PARTS["image encoder with neck"]
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


def test_a_trace_takes_another_number_of_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them gets its own best mask."""
    part, model = PARTS["best mask and pointer"], small_predictor()
    traced = torch.jit.trace(
        Module(lambda *given: part.run(model, *given), model), inputs(part, 1), check_trace=False
    )
    more = inputs(part._replace(shapes=(*part.shapes[:3], (5, 2, 2))), 3)
    as_exact_as_torch(traced(*more), part, model, more, monkeypatch)


def test_kernels_that_take_addresses_refuse() -> None:
    nothing: Any = None
    with pytest.raises(BackendError, match=r"memory_attention_at: torch\.jit.trace is under way"):
        jit_trace(
            Module(lambda x: memory_attention_at(x, nothing, nothing, nothing, nothing, nothing)),
            (torch.ones(1),),
            (torch.ones(1),),
        )


def test_no_cuda_graph_is_recorded_while_somebody_else_records() -> None:
    class OnGpu:
        device = torch.device("cuda")

    said: list[str | None] = []
    on_gpu: Any = OnGpu()

    def look(x: Tensor) -> Tensor:
        said.append(Graphs().refuses(small_predictor(), on_gpu))
        return x * 2

    for record in (jit_trace, dispatched):
        record(Module(look), (torch.ones(1),), (torch.ones(1),))
    assert said == ["torch.jit.trace is under way", "a TorchDispatchMode is active"]
