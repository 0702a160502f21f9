"""Frames that are encoded ahead, in batches: the same masks, and nothing goes wrong before its
time.
"""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest
import torch

from sam2_fast.io.frames import FrameSource
from sam2_fast.recording import cache as graphs_module
from sam2_fast.recording.cache import Graphs
from sam2_fast.recording.cuda_graph import SideStream
from sam2_fast.recording.runner import Runner
from sam2_fast.video import lookahead as ahead_module
from sam2_fast.video.lookahead import BATCH, READS, LookAhead
from sam2_fast.video.predictor import SAM2VideoPredictor
from tests.ops.fake_cuda import Cuda, cuda
from tests.video.recorded import NoSideStream, edited, frames, small_predictor
from tests.video.tape import TapeRecorder

__all__ = ["cuda"]


class Watched(Graphs):
    """Graphs that a CPU can make of the encoder; they note how many frames each call encodes."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []

    def refuses(self, *_: Any) -> None:
        return None

    def refuses_frame(self, *_: Any) -> str:
        return "the encoder alone is recorded"

    def encode(self, model: Any, images: torch.Tensor, checked: Any = None) -> Any:
        self.calls.append(len(images))
        return super().encode(model, images, checked)


class Damaged(FrameSource):
    """A video whose frame `bad` cannot be decoded."""

    def __init__(self, bad: int) -> None:
        self._frames, self._bad = frames(12), bad
        super().__init__("damaged", 12, *self._frames.shape[1:3])

    def _read(self, index: int) -> np.ndarray:
        if index == self._bad:
            raise ValueError(f"{self.name}: frame {index} cannot be decoded")
        return self._frames[index]


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> SAM2VideoPredictor:
    monkeypatch.setattr(graphs_module, "Recorder", TapeRecorder)
    monkeypatch.setattr(ahead_module, "SideStream", NoSideStream)
    # A tape sees torch's operators alone.
    monkeypatch.setattr("sam2_fast.ops.core.native.native", lambda: None)
    predictor = small_predictor()
    predictor.graphs = Watched()
    return predictor


def tracked(predictor: SAM2VideoPredictor, video: Any, reverse: bool = False) -> list[torch.Tensor]:
    state = predictor.init_state(video)
    predictor.add_new_points_or_box(
        state, 11 if reverse else 0, 1, points=[[20.0, 30.0]], labels=[1]
    )
    return [masks for _, _, masks in predictor.propagate_in_video(state, reverse=reverse)]


@pytest.mark.parametrize("reverse", [False, True])
def test_frames_encoded_in_batches_give_the_same_masks(
    watched: SAM2VideoPredictor, reverse: bool
) -> None:
    found = tracked(watched, frames(12), reverse)
    assert isinstance(watched.graphs, Watched)
    calls = watched.graphs.calls
    watched.graphs = None
    expected = tracked(watched, frames(12), reverse)
    assert len(found) == len(expected) == 12
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    assert BATCH in calls and set(calls) == {1, BATCH}
    assert sum(calls) == 12 + (1 if reverse else 0), (
        "the prompted frame, and frame 0 when the video was opened; each once"
    )


def test_editing_between_frames_does_not_disturb_what_is_ahead(watched: SAM2VideoPredictor) -> None:
    found = list(edited(watched))
    watched.graphs = None
    for a, b in zip(found, edited(watched), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("bad", [1, 6, 11])
def test_a_damaged_frame_is_named_when_its_turn_comes(
    watched: SAM2VideoPredictor, bad: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sam2_fast.video.predictor.open_video", lambda video: video)
    state = watched.init_state(Damaged(bad))
    watched.add_new_points_or_box(state, 0, 1, points=[[20.0, 30.0]], labels=[1])
    seen = []
    with pytest.raises(ValueError, match=f"frame {bad} cannot be decoded"):
        seen += [frame for frame, _, _ in watched.propagate_in_video(state)]
        pytest.fail("the damaged frame was passed")
    assert state.objects[1].passed == dict.fromkeys(range(bad), 1)


def look_ahead(order: range) -> LookAhead:
    return LookAhead(Damaged(-1), torch.device("cpu"), order)


@torch.inference_mode()
def test_what_a_pass_goes_by_is_forgotten(watched: SAM2VideoPredictor) -> None:
    ahead, runner = look_ahead(range(12)), Runner(watched, watched.graphs)
    for frame in range(4):
        ahead.advance(frame, runner)
    assert len(ahead._encoded) + len(ahead._images) == 2 * BATCH, (
        "no more than two batches are held"
    )
    ahead.features(9, runner)
    assert not ahead._encoded and not ahead._images
    assert ahead.features(2, runner).low.shape == (1, 256, 4, 4), "going back"


@torch.inference_mode()
def test_passes_do_not_disturb_each_other(watched: SAM2VideoPredictor) -> None:
    forward, runner = look_ahead(range(12)), Runner(watched, watched.graphs)
    backward = look_ahead(range(11, -1, -1))
    forward.advance(0, runner)
    backward.advance(9, runner)
    assert list(forward._images) == [1, 2] and list(backward._images) == [8, 7]


def test_a_click_on_a_later_frame_leaves_what_is_ahead(watched: SAM2VideoPredictor) -> None:
    state = watched.init_state(frames(12))
    watched.add_new_points_or_box(state, 0, 1, points=[[20.0, 30.0]], labels=[1])
    passing = watched.propagate_in_video(state)
    for _ in range(3):
        next(passing)
    assert isinstance(watched.graphs, Watched)
    watched.add_new_points_or_box(state, 11, 1, points=[[20.0, 30.0]], labels=[1])
    before = sum(watched.graphs.calls)
    next(passing)
    assert sum(watched.graphs.calls) - before <= BATCH, "frames were encoded again"
    list(passing)
    assert sum(watched.graphs.calls) == 12, "each frame once"


def test_the_end_of_a_pass_frees_what_is_ahead(
    watched: SAM2VideoPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[weakref.ref[LookAhead]] = []

    class Noted(LookAhead):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            made.append(weakref.ref(self))

    monkeypatch.setattr("sam2_fast.video.tracker.LookAhead", Noted)
    state = watched.init_state(frames(12))
    watched.add_new_points_or_box(state, 0, 1, points=[[20.0, 30.0]], labels=[1])
    passing = watched.propagate_in_video(state)
    next(passing)
    (ahead,) = made
    pass_ahead = ahead()
    assert pass_ahead is not None and pass_ahead._images
    del pass_ahead
    passing.close()
    gc.collect()
    assert ahead() is None


@torch.no_grad()
def test_frames_ahead_are_encoded_behind_weights_that_were_written(
    watched: SAM2VideoPredictor, cuda: Cuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead_module, "SideStream", SideStream)
    ahead = look_ahead(range(12))
    # Operations of the caller's stream that the last batch is ordered behind.
    ordered: set[str] = set()

    def encode(model: Any, images: torch.Tensor, checked: Any = None) -> Any:
        del checked
        ordered.clear()
        ordered.update(cuda.current().preceding)
        return model.encode_image(images)

    def batch(before: str) -> None:
        cuda.main.run(before)
        ahead._encoded.clear()
        for _ in range(BATCH // READS):
            ahead.advance(0, Runner(watched, watched.graphs))
        assert len(ahead._encoded) == BATCH

    monkeypatch.setattr(watched.graphs, "encode", encode)
    batch("load")
    weight: Any = watched.image_encoder.trunk.blocks[0].mlp.layers[0].weight
    weight.mul_(1.5)
    batch("write")
    assert "write" in ordered
