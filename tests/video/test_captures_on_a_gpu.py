"""Captures of CUDA graphs on a GPU: memory pools, captures that fail, threads."""

from __future__ import annotations

import gc
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from sam2_fast.ops.core.native import no_triton
from sam2_fast.recording import cache as graphs_module
from sam2_fast.recording.cache import Graphs
from sam2_fast.recording.cuda_graph import CaptureError, Recorder, capture
from sam2_fast.types import Points
from sam2_fast.video.predictor import SAM2VideoPredictor
from tests.video.sessions import edited_session, small_predictor

pytestmark = pytest.mark.gpu
ROUNDS = 12
WARM_UP_ROUNDS = 3
"""Rounds after which the memory must not grow any more."""


@pytest.fixture
def predictor() -> Iterator[SAM2VideoPredictor]:
    """A small predictor on a GPU; a warning, such as that of a failed capture, is an error."""
    if reason := no_triton():
        pytest.skip(reason)
    # Not inference mode: writes to tensors that are created in it do not change their version.
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        yield small_predictor().to("cuda", torch.bfloat16)


def memory() -> tuple[int, int]:
    """Bytes of all tensors, and bytes that torch has reserved from the driver."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated(), torch.cuda.memory_reserved()


def assert_memory_is_bounded(measurements: list[tuple[int, int]]) -> None:
    for values in zip(*measurements, strict=True):
        assert max(values[WARM_UP_ROUNDS:]) <= max(values[:WARM_UP_ROUNDS]), measurements


def assert_encoded_equally(predictor: SAM2VideoPredictor, graphs: Graphs, count: int = 1) -> None:
    """Two rounds, so that the second one is only a replay."""
    for _ in range(2):
        images = torch.randn(count, 3, 64, 64, device="cuda", dtype=torch.bfloat16)
        features = graphs.encode(predictor, images)
        assert all(map(torch.equal, features, predictor.encode_image(images)))


def assert_decoded_equally(predictor: SAM2VideoPredictor, graphs: Graphs) -> None:
    image = torch.randn(1, 3, 64, 64, device="cuda", dtype=torch.bfloat16)
    features = predictor.encode_image(image)
    coordinates = torch.full((1, 1, 2), 20.0, device="cuda")
    points = Points(coordinates, torch.ones(1, 1, dtype=torch.int32, device="cuda"))
    expected = predictor.decode(features.low, features, points, None, True)
    for _ in range(3):  # the second call captures
        masks = graphs.decode(predictor, features.low, features, points, None, True)
        assert torch.equal(masks.logits, expected.logits) and torch.equal(masks.iou, expected.iou)


def test_captures_after_weight_changes_do_not_increase_memory(
    predictor: SAM2VideoPredictor,
) -> None:
    graphs = Graphs()
    measurements = []
    parameters = list(predictor.parameters())
    originals = [p.clone() for p in parameters]
    for i in range(ROUNDS):
        for parameter, original in zip(parameters, originals, strict=True):
            parameter.copy_(original) if i % 2 else parameter.mul_(1.01)
        assert_encoded_equally(predictor, graphs)
        assert_decoded_equally(predictor, graphs)
        assert len(graphs) == 2
        measurements.append(memory())
    assert_memory_is_bounded(measurements)


def test_the_only_graph_of_a_recorder_is_evicted_and_captured_again(
    predictor: SAM2VideoPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs_module, "MAX_GRAPHS", 1)
    graphs = Graphs()
    measurements = []
    for _ in range(ROUNDS):
        assert_encoded_equally(predictor, graphs)
        assert next(iter(graphs._entries))[0] == "encode"
        assert_decoded_equally(predictor, graphs)
        assert next(iter(graphs._entries))[0] == "decode" and len(graphs) == 1
        measurements.append(memory())
    assert_memory_is_bounded(measurements)


@pytest.mark.parametrize("cause", ["synchronises", "raises", "runs out of memory"])
def test_the_device_can_be_used_after_a_failed_capture(
    predictor: SAM2VideoPredictor, cause: str
) -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    recorder = Recorder(device)
    x = torch.arange(4.0, device=device)
    stream = torch.cuda.current_stream()

    def fail() -> Any:
        if torch.cuda.is_current_stream_capturing():
            if cause == "synchronises":
                return x.sum().item()
            if cause == "raises":
                raise RuntimeError("during the capture")
            return torch.empty(1 << 50, device=device)
        return x + 1

    with recorder.exclusive():
        before = capture(recorder, lambda: x * 2)
        for _ in range(3):
            with pytest.raises(CaptureError):
                capture(recorder, fail)
        assert torch.cuda.current_stream() == stream
        assert not torch.cuda.is_current_stream_capturing()
        after = capture(recorder, lambda: x * 3)
        x.add_(1.0)
        assert before().tolist() == [2.0, 4.0, 6.0, 8.0]
        assert after().tolist() == [3.0, 6.0, 9.0, 12.0]
    assert torch.rand(3, device=device).isfinite().all(), "the random generator is not usable"
    side = torch.cuda.Stream()
    allocated = memory()[0]
    for _ in range(3):  # memory that two streams used is freed
        shared = torch.empty(1 << 20, device=device)
        shared.record_stream(side)
        del shared
    assert memory()[0] == allocated
    assert_encoded_equally(predictor, Graphs())


def test_two_predictors_on_two_threads_give_the_masks_of_one(predictor: SAM2VideoPredictor) -> None:
    expected = list(edited_session(predictor))
    others = [small_predictor().to("cuda", torch.bfloat16) for _ in range(2)]
    torch.cuda.synchronize()  # each thread uses another stream
    results: list[list[torch.Tensor]] = [[], []]
    start = threading.Barrier(2)

    def track(index: int) -> None:
        start.wait(60.0)
        with torch.inference_mode(), torch.cuda.stream(torch.cuda.Stream()):
            results[index] += edited_session(others[index])
            torch.cuda.current_stream().synchronize()

    threads = [threading.Thread(target=track, args=(index,), daemon=True) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(240.0)
        assert not thread.is_alive(), "a deadlock"
    for masks in results:
        for a, b in zip(masks, expected, strict=True):
            assert torch.equal(a, b)
