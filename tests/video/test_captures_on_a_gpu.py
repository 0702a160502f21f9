"""What only a device can show of captures: pools that are given back, captures
that fail, threads.
"""

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
from tests.video.recorded import edited, small_predictor

pytestmark = pytest.mark.gpu
ROUNDS = 12
SETTLED = 3
"""Rounds after which no more memory may be taken."""


@pytest.fixture
def predictor() -> Iterator[SAM2VideoPredictor]:
    """A small predictor on a GPU; a warning, as of a capture that fails, is an error."""
    if reason := no_triton():
        pytest.skip(reason)
    with (
        torch.no_grad(),
        warnings.catch_warnings(),
    ):  # writes to tensors made in inference mode are not counted
        warnings.simplefilter("error", RuntimeWarning)
        yield small_predictor().to("cuda", torch.bfloat16)


def memory() -> tuple[int, int]:
    """Bytes that tensors have, and that torch has taken from the driver."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated(), torch.cuda.memory_reserved()


def encoded_alike(predictor: SAM2VideoPredictor, graphs: Graphs, count: int = 1) -> None:
    """Twice, so that one comes from a replay alone."""
    for _ in range(2):
        images = torch.randn(count, 3, 64, 64, device="cuda", dtype=torch.bfloat16)
        found, expected = graphs.encode(predictor, images), predictor.encode_image(images)
        assert all(map(torch.equal, found, expected))


def decoded_alike(predictor: SAM2VideoPredictor, graphs: Graphs) -> None:
    features = predictor.encode_image(
        torch.randn(1, 3, 64, 64, device="cuda", dtype=torch.bfloat16)
    )
    points = Points(
        torch.full((1, 1, 2), 20.0, device="cuda"),
        torch.ones(1, 1, dtype=torch.int32, device="cuda"),
    )
    expected = predictor.decode(features.low, features, points, None, True)
    for _ in range(3):  # recorded the second time
        found = graphs.decode(predictor, features.low, features, points, None, True)
        assert torch.equal(found.logits, expected.logits) and torch.equal(found.iou, expected.iou)


def test_recordings_of_changing_weights_take_no_more_memory(predictor: SAM2VideoPredictor) -> None:
    graphs, taken = Graphs(), []
    parameters = list(predictor.parameters())
    originals = [p.clone() for p in parameters]
    for i in range(ROUNDS):
        for parameter, original in zip(parameters, originals, strict=True):
            parameter.copy_(original) if i % 2 else parameter.mul_(1.01)
        encoded_alike(predictor, graphs)
        decoded_alike(predictor, graphs)
        assert len(graphs) == 2
        taken.append(memory())
    for kind in zip(*taken, strict=True):
        assert max(kind[SETTLED:]) <= max(kind[:SETTLED]), taken


def test_the_only_recording_of_a_recorder_is_evicted_and_made_again(
    predictor: SAM2VideoPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs_module, "MAX_GRAPHS", 1)
    graphs, taken = Graphs(), []
    for _ in range(ROUNDS):
        encoded_alike(predictor, graphs)
        assert next(iter(graphs._entries))[0] == "encode"
        decoded_alike(predictor, graphs)
        assert next(iter(graphs._entries))[0] == "decode" and len(graphs) == 1
        taken.append(memory())
    for kind in zip(*taken, strict=True):
        assert max(kind[SETTLED:]) <= max(kind[:SETTLED]), taken


@pytest.mark.parametrize("way", ["synchronises", "raises", "runs out of memory"])
def test_after_a_failed_capture_everything_works(predictor: SAM2VideoPredictor, way: str) -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    recorder, x = Recorder(device), torch.arange(4.0, device=device)
    here = torch.cuda.current_stream()

    def bad() -> Any:
        if torch.cuda.is_current_stream_capturing():
            if way == "synchronises":
                return x.sum().item()
            if way == "raises":
                raise RuntimeError("in the middle")
            return torch.empty(1 << 50, device=device)
        return x + 1

    with recorder.exclusive():
        living = capture(recorder, lambda: x * 2)
        for _ in range(3):
            with pytest.raises(CaptureError):
                capture(recorder, bad)
        assert torch.cuda.current_stream() == here and not torch.cuda.is_current_stream_capturing()
        again = capture(recorder, lambda: x * 3)
        x.add_(1.0)
        assert living().tolist() == [2.0, 4.0, 6.0, 8.0] and again().tolist() == [
            3.0,
            6.0,
            9.0,
            12.0,
        ]
    assert torch.rand(3, device=device).isfinite().all(), "random numbers outside of a capture"
    side = torch.cuda.Stream()
    before = memory()[0]
    for _ in range(3):  # memory that two streams used is free again
        shared = torch.empty(1 << 20, device=device)
        shared.record_stream(side)
        del shared
    assert memory()[0] == before
    encoded_alike(predictor, Graphs())


def test_two_predictors_on_two_threads_give_the_masks_of_one(predictor: SAM2VideoPredictor) -> None:
    expected = list(edited(predictor))
    others = [small_predictor().to("cuda", torch.bfloat16) for _ in range(2)]
    torch.cuda.synchronize()  # the threads use streams of their own
    results: list[list[torch.Tensor]] = [[], []]
    start = threading.Barrier(2)

    def track(which: int) -> None:
        start.wait(60.0)
        with torch.inference_mode(), torch.cuda.stream(torch.cuda.Stream()):
            results[which] += edited(others[which])
            torch.cuda.current_stream().synchronize()

    threads = [threading.Thread(target=track, args=(which,), daemon=True) for which in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(240.0)
        assert not thread.is_alive(), "a deadlock"
    for masks in results:
        for a, b in zip(masks, expected, strict=True):
            assert torch.equal(a, b)
