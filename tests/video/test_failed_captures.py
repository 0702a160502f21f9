"""Captures that fail: one warning, one attempt, and the results of a predictor
without recordings.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch

from sam2_fast.image.predictor import SAM2ImagePredictor
from sam2_fast.recording import cache as graphs_module
from sam2_fast.recording.cuda_graph import CaptureError
from sam2_fast.recording.frame import FrameGraph
from sam2_fast.video import lookahead as ahead_module
from sam2_fast.video.predictor import SAM2VideoPredictor
from tests.ops.triton_tools import interpret
from tests.video.failing import FailingRecorder, Willing
from tests.video.recorded import NoSideStream, brief, frames, small_predictor

INTERPRETED = """
import warnings
from tests.video.failing import FailingRecorder
from tests.video.recorded import frames, on_triton, recorded, small_predictor
from tests.video.tape import TapeRecorder, record_launches


def growing(predictor):
    state = predictor.init_state(frames(3))
    predictor.add_new_points_or_box(state, 0, 0, points=[[10.0, 30.0]], labels=[1])
    for frame, _, masks in predictor.propagate_in_video(state):
        yield masks
        if frame == 1:  # so that a frame of one object and one of two objects are tracked
            predictor.add_new_points_or_box(state, 1, 1, box=[10.0, 15.0, 40.0, 45.0])


on_triton("memory_attention")
record_launches()
free = small_predictor()
free.graphs = None
expected = list(growing(free))
FailingRecorder.fails = lambda attempt: (
    attempt == 1
)  # the first tracked frame; the encoder comes before it
FailingRecorder.at = "capture"
predictor = recorded(small_predictor(), FailingRecorder)
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    found = list(growing(predictor))
assert len(found) == len(expected) == 3
for i, (a, b) in enumerate(zip(found, expected)):
    assert (a - b).abs().max() < 1e-3, (i, (a - b).abs().max())
assert [key[0] for key in predictor.graphs.refused] == ["track"]
assert len([w for w in seen if "CUDA graph" in str(w.message)]) == 1
assert TapeRecorder.recorded == len(predictor.graphs) == 2, (
    "the encoder and the frame of two objects"
)
"""


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> SAM2VideoPredictor:
    """A predictor on the CPU all of whose captures fail."""
    monkeypatch.setattr(graphs_module, "Recorder", FailingRecorder)
    monkeypatch.setattr(ahead_module, "SideStream", NoSideStream)
    # A tape sees torch's operators alone.
    monkeypatch.setattr("sam2_fast.ops.core.native.native", lambda: None)
    # The kernels need a GPU.
    monkeypatch.setattr(FrameGraph, "run", lambda self: self._pointers.fill_(float("nan")))
    monkeypatch.setattr(FailingRecorder, "attempts", 0)
    monkeypatch.setattr(FailingRecorder, "fails", staticmethod(lambda attempt: True))
    predictor = small_predictor()
    predictor.graphs = Willing()
    return predictor


def only(*attempts: int) -> Any:
    return staticmethod(lambda attempt: attempt in attempts)


def encode(graphs: Willing, predictor: SAM2VideoPredictor, count: int = 1) -> bool:
    """Whether images are encoded as they are without recordings."""
    images = torch.randn(count, 3, 64, 64)
    with torch.inference_mode():
        return all(
            map(torch.equal, graphs.encode(predictor, images), predictor.encode_image(images))
        )


@pytest.mark.parametrize("at", ["warm-up", "capture"])
def test_a_video_is_tracked_as_without_recordings(
    failing: SAM2VideoPredictor, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FailingRecorder, "at", at)
    with pytest.warns(RuntimeWarning, match="could not capture a CUDA graph") as seen:
        found = list(brief(failing))
    graphs = failing.graphs
    assert graphs is not None and len(graphs) == 0
    assert {key[0] for key in graphs.refused} == {"encode", "track"}
    assert len(seen) == len(graphs.refused) == FailingRecorder.attempts, (
        "one warning and one attempt for a key"
    )
    failing.graphs = None
    for a, b in zip(found, brief(failing), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("at", ["warm-up", "capture"])
@pytest.mark.parametrize("bad", [0, 1, 2])
def test_clicks_are_those_without_recordings_and_other_keys_are_recorded(
    failing: SAM2VideoPredictor, at: str, bad: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FailingRecorder, "at", at)
    monkeypatch.setattr(FailingRecorder, "fails", only(bad))
    clicker, plain = SAM2ImagePredictor(failing), SAM2ImagePredictor(failing)
    clicker.graphs, plain.graphs = Willing(), None

    def click() -> None:
        hint = None
        for i in range(6):
            for predictor in (clicker, plain):
                predictor.set_image(frames(6)[i])
            results = [
                p.predict([[10.0 + i, 30.0]], [1], mask_input=hint) for p in (clicker, plain)
            ]
            assert all(np.array_equal(a, b) for a, b in zip(*results, strict=True)), i
            hint = results[0][2][:1] if i > 1 else None

    with pytest.warns(RuntimeWarning) as seen:
        click()
    kinds = ["encode", "decode", "decode"]
    assert [key[0] for key in clicker.graphs.refused] == [kinds[bad]]
    assert len(seen) == 1 and FailingRecorder.attempts == 3 and len(clicker.graphs) == 2


def test_the_warning_says_what_failed_why_and_what_to_do(
    failing: SAM2VideoPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FailingRecorder, "at", "capture")
    graphs = Willing()
    with pytest.warns(RuntimeWarning) as seen:
        encode(graphs, failing)
    message = str(seen[0].message)
    for part in (
        "the image encoder",
        "not permitted when stream is capturing",
        "without a CUDA graph from now on",
        "`graphs` to None",
    ):
        assert part in message
    assert "advice" not in message, "the first line of torch's message is the reason"
    assert list(graphs.refused.values()) == [
        "RuntimeError: CUDA error: operation not permitted when stream is capturing"
    ]


@pytest.mark.filterwarnings("ignore:sam2_fast could not capture")
@torch.no_grad()
def test_refused_keys_are_tried_again_once_the_weights_have_changed(
    failing: SAM2VideoPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FailingRecorder, "fails", only(0))
    graphs = Willing()
    assert encode(graphs, failing) and encode(graphs, failing)
    assert len(graphs.refused) == 1 and FailingRecorder.attempts == 1
    failing.image_encoder.trunk.blocks[0].mlp.layers[0].weight.mul_(1.5)
    assert encode(graphs, failing) and encode(graphs, failing)
    assert len(graphs.refused) == 0 and len(graphs) == 1


@pytest.mark.filterwarnings("ignore:sam2_fast could not capture")
def test_the_number_of_refused_keys_is_bounded(
    failing: SAM2VideoPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs_module, "MAX_REFUSED", 2)
    graphs = Willing()
    for count in (1, 2, 3):
        assert encode(graphs, failing, count)
    assert [key[1] for key in graphs.refused] == [(2, 3, 64, 64), (3, 3, 64, 64)]


def test_an_error_of_the_eager_run_reaches_the_caller_and_refuses_nothing(
    failing: SAM2VideoPredictor,
) -> None:
    graphs = Willing()
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeError) as caught:
            graphs.encode(failing, torch.zeros(1, 5, 64, 64))  # images of five channels
    assert not isinstance(caught.value, CaptureError) and "channels" in str(caught.value)
    assert len(graphs.refused) == len(graphs) == 0


def test_an_interrupted_capture_is_not_taken_for_a_failed_one(
    failing: SAM2VideoPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(FailingRecorder, "record", interrupted)
    graphs = Willing()
    with pytest.raises(KeyboardInterrupt):
        encode(graphs, failing)
    assert len(graphs.refused) == len(graphs) == 0


def test_a_recorder_is_made_once(
    failing: SAM2VideoPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    monkeypatch.setattr(FailingRecorder, "__init__", lambda self, device: made.append(device))
    monkeypatch.setattr(FailingRecorder, "fails", only())
    graphs = Willing()
    for _ in range(3):
        assert encode(graphs, failing)
    assert len(made) == 1


def test_one_tracked_shape_fails_and_the_others_are_recorded() -> None:
    pytest.importorskip("triton")
    interpret(INTERPRETED)
