"""Frames encoded ahead of time, in batches, give the same masks and the same errors."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest
import torch

from sam2_fast.io.frames import FrameSource
from sam2_fast.recording import cache as graphs_module
from sam2_fast.recording.cuda_graph import SideStream
from sam2_fast.recording.runner import Runner
from sam2_fast.video import lookahead as ahead_module
from sam2_fast.video.lookahead import BATCH, READS, LookAhead
from sam2_fast.video.predictor import SAM2VideoPredictor
from tests.ops.fake_cuda import Cuda, cuda
from tests.video.sessions import NoSideStream, edited_session, frames, small_predictor
from tests.video.tape import GraphsOnCpu, TapeRecorder

__all__ = ["cuda"]


class CountingGraphs(GraphsOnCpu):
    """CUDA graphs of the image encoder, on a CPU, with the number of images of each call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []

    def refuses_frame(self, *_: Any) -> str:
        return "only the encoder is captured"

    def encode(self, model: Any, images: torch.Tensor, checked: Any = None) -> Any:
        self.calls.append(len(images))
        return super().encode(model, images, checked)


class DamagedVideo(FrameSource):
    """A video whose frame `bad` cannot be decoded."""

    def __init__(self, bad: int) -> None:
        self._frames = frames(12)
        self._bad = bad
        super().__init__("damaged", 12, *self._frames.shape[1:3])

    def _read(self, index: int) -> np.ndarray:
        if index == self._bad:
            raise ValueError(f"{self.name}: frame {index} cannot be decoded")
        return self._frames[index]


@pytest.fixture
def predictor(monkeypatch: pytest.MonkeyPatch) -> SAM2VideoPredictor:
    """A predictor on the CPU with CUDA graphs of its encoder."""
    monkeypatch.setattr(graphs_module, "Recorder", TapeRecorder)
    monkeypatch.setattr(ahead_module, "SideStream", NoSideStream)
    # A tape records the operators of torch only.
    monkeypatch.setattr("sam2_fast.ops.core.native.native", lambda: None)
    model = small_predictor()
    model.graphs = CountingGraphs()
    return model


def track(predictor: SAM2VideoPredictor, video: Any, reverse: bool = False) -> list[torch.Tensor]:
    state = predictor.init_state(video)
    predictor.add_new_points_or_box(
        state, 11 if reverse else 0, 1, points=[[20.0, 30.0]], labels=[1]
    )
    return [masks for _, _, masks in predictor.propagate_in_video(state, reverse=reverse)]


@pytest.mark.parametrize("reverse", [False, True])
def test_frames_encoded_in_batches_give_the_same_masks(
    predictor: SAM2VideoPredictor, reverse: bool
) -> None:
    masks = track(predictor, frames(12), reverse)
    assert isinstance(predictor.graphs, CountingGraphs)
    calls = predictor.graphs.calls
    predictor.graphs = None
    expected = track(predictor, frames(12), reverse)
    assert len(masks) == len(expected) == 12
    for a, b in zip(masks, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    assert BATCH in calls and set(calls) == {1, BATCH}
    # Each frame is encoded once; in reverse, frame 0 also when the video is opened.
    assert sum(calls) == 12 + (1 if reverse else 0)


def test_a_session_that_is_edited_between_frames_gives_the_same_masks(
    predictor: SAM2VideoPredictor,
) -> None:
    masks = list(edited_session(predictor))
    predictor.graphs = None
    for a, b in zip(masks, edited_session(predictor), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("bad", [1, 6, 11])
def test_a_damaged_frame_raises_when_it_is_tracked_and_not_earlier(
    predictor: SAM2VideoPredictor, bad: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sam2_fast.video.predictor.open_video", lambda video: video)
    state = predictor.init_state(DamagedVideo(bad))
    predictor.add_new_points_or_box(state, 0, 1, points=[[20.0, 30.0]], labels=[1])
    with pytest.raises(ValueError, match=f"frame {bad} cannot be decoded"):
        list(predictor.propagate_in_video(state))
    assert state.objects[1].passed == {t: {"reverse": False} for t in range(bad)}


def look_ahead(order: range) -> LookAhead:
    return LookAhead(DamagedVideo(-1), torch.device("cpu"), order)


@torch.inference_mode()
def test_features_of_skipped_frames_are_dropped(predictor: SAM2VideoPredictor) -> None:
    ahead = look_ahead(range(12))
    runner = Runner(predictor, predictor.graphs)
    for frame in range(4):
        ahead.advance(frame, runner)
    assert len(ahead._encoded) + len(ahead._images) == 2 * BATCH, "two batches at most"
    ahead.features(9, runner)
    assert not ahead._encoded and not ahead._images
    assert ahead.features(2, runner).low.shape == (1, 256, 4, 4), "an earlier frame again"


@torch.inference_mode()
def test_passes_are_independent(predictor: SAM2VideoPredictor) -> None:
    runner = Runner(predictor, predictor.graphs)
    forward = look_ahead(range(12))
    backward = look_ahead(range(11, -1, -1))
    forward.advance(0, runner)
    backward.advance(9, runner)
    assert list(forward._images) == [1, 2] and list(backward._images) == [8, 7]


def test_a_click_on_a_later_frame_keeps_the_features_of_the_frames_before_it(
    predictor: SAM2VideoPredictor,
) -> None:
    state = predictor.init_state(frames(12))
    predictor.add_new_points_or_box(state, 0, 1, points=[[20.0, 30.0]], labels=[1])
    outputs = predictor.propagate_in_video(state)
    for _ in range(3):
        next(outputs)
    assert isinstance(predictor.graphs, CountingGraphs)
    predictor.add_new_points_or_box(state, 11, 1, points=[[20.0, 30.0]], labels=[1])
    before = sum(predictor.graphs.calls)
    next(outputs)
    assert sum(predictor.graphs.calls) - before <= BATCH, "frames were encoded again"
    list(outputs)
    assert sum(predictor.graphs.calls) == 12, "frames were encoded again"


def test_the_end_of_a_pass_frees_the_features_of_frames_to_come(
    predictor: SAM2VideoPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    references: list[weakref.ref[LookAhead]] = []

    class ReferencedLookAhead(LookAhead):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            references.append(weakref.ref(self))

    monkeypatch.setattr("sam2_fast.video.tracker.LookAhead", ReferencedLookAhead)
    state = predictor.init_state(frames(12))
    predictor.add_new_points_or_box(state, 0, 1, points=[[20.0, 30.0]], labels=[1])
    outputs = predictor.propagate_in_video(state)
    next(outputs)
    (reference,) = references
    ahead = reference()
    assert ahead is not None and ahead._images
    del ahead
    outputs.close()
    gc.collect()
    assert reference() is None


@torch.no_grad()
def test_frames_are_encoded_after_writes_to_the_weights(
    predictor: SAM2VideoPredictor, cuda: Cuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead_module, "SideStream", SideStream)
    ahead = look_ahead(range(12))
    # Operations of the caller's stream after which the last batch is encoded.
    preceding: set[str] = set()

    def encode(model: Any, images: torch.Tensor, checked: Any = None) -> Any:
        del checked
        preceding.clear()
        preceding.update(cuda.current().preceding)
        return model.encode_image(images)

    def encode_batch(after: str) -> None:
        cuda.main.run(after)
        ahead._encoded.clear()
        for _ in range(BATCH // READS):
            ahead.advance(0, Runner(predictor, predictor.graphs))
        assert len(ahead._encoded) == BATCH

    monkeypatch.setattr(predictor.graphs, "encode", encode)
    encode_batch(after="load")
    weight: Any = predictor.image_encoder.trunk.blocks[0].mlp.layers[0].weight
    weight.mul_(1.5)
    encode_batch(after="write")
    assert "write" in preceding


def test_an_observed_encoder_is_called_for_one_frame_at_a_time(
    predictor: SAM2VideoPredictor,
) -> None:
    expected = track(predictor, frames(12))
    graphs = predictor.graphs
    assert isinstance(graphs, CountingGraphs) and graphs.calls
    graphs.calls.clear()
    sizes: list[int] = []
    block = predictor.image_encoder.trunk.blocks[1]
    block.register_forward_hook(lambda _, __, output: sizes.append(len(output)))
    with torch.inference_mode():
        runner = Runner(predictor, graphs)
    assert runner.graphs is graphs, "tracked frames do not contain the encoder"
    assert runner.encoder_graphs is None
    masks = track(predictor, frames(12))
    assert sizes == [1] * 12 and not graphs.calls
    for a, b in zip(masks, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
