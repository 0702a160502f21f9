"""Captures that fail: one warning, one attempt, and the results of a predictor without graphs."""

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
from tests.video.failing import FailingRecorder
from tests.video.sessions import NoSideStream, frames, short_session, small_predictor
from tests.video.tape import UnconditionalGraphs

PROGRAM = """
import warnings
from tests.video.failing import FailingRecorder
from tests.video.sessions import frames, run_in_triton, small_predictor, use_recorder
from tests.video.tape import TapeRecorder, record_launches


def growing_session(predictor):
    state = predictor.init_state(frames(3))
    predictor.add_new_points_or_box(state, 0, 0, points=[[10.0, 30.0]], labels=[1])
    for frame, _, masks in predictor.propagate_in_video(state):
        yield masks
        if frame == 1:  # one frame has one object, the next one has two
            predictor.add_new_points_or_box(state, 1, 1, box=[10.0, 15.0, 40.0, 45.0])


run_in_triton("memory_attention")
record_launches()
without_graphs = small_predictor()
without_graphs.graphs = None
expected = list(growing_session(without_graphs))
# Attempt 0 is the image encoder, attempt 1 the first tracked frame.
FailingRecorder.fails = lambda attempt: attempt == 1
FailingRecorder.at = "capture"
predictor = use_recorder(small_predictor(), FailingRecorder)
with warnings.catch_warnings(record=True) as record:
    warnings.simplefilter("always")
    masks = list(growing_session(predictor))
assert len(masks) == len(expected) == 3
for i, (a, b) in enumerate(zip(masks, expected)):
    assert (a - b).abs().max() < 1e-3, (i, (a - b).abs().max())
assert [key[0] for key in predictor.graphs.refused] == ["track"]
assert len([w for w in record if "CUDA graph" in str(w.message)]) == 1
# The encoder and the frame with two objects.
assert TapeRecorder.captures == len(predictor.graphs) == 2
"""


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> SAM2VideoPredictor:
    """A predictor on the CPU whose captures all fail."""
    monkeypatch.setattr(graphs_module, "Recorder", FailingRecorder)
    monkeypatch.setattr(ahead_module, "SideStream", NoSideStream)
    # A tape records the operators of torch only.
    monkeypatch.setattr("sam2_fast.ops.core.native.native", lambda: None)
    # The kernels of a captured frame need a GPU.
    monkeypatch.setattr(FrameGraph, "run", lambda self: self._pointers.fill_(float("nan")))
    monkeypatch.setattr(FailingRecorder, "attempts", 0)
    monkeypatch.setattr(FailingRecorder, "fails", staticmethod(lambda attempt: True))
    predictor = small_predictor()
    predictor.graphs = UnconditionalGraphs()
    return predictor


def only(*attempts: int) -> Any:
    """A value of `FailingRecorder.fails`: these attempts raise."""
    return staticmethod(lambda attempt: attempt in attempts)


def encodes_equally(
    graphs: UnconditionalGraphs, predictor: SAM2VideoPredictor, count: int = 1
) -> bool:
    """Whether images are encoded as without CUDA graphs."""
    images = torch.randn(count, 3, 64, 64)
    with torch.inference_mode():
        features = graphs.encode(predictor, images)
        return all(map(torch.equal, features, predictor.encode_image(images)))


@pytest.mark.parametrize("at", ["warm-up", "capture"])
def test_a_video_is_tracked_as_without_cuda_graphs(
    failing: SAM2VideoPredictor, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FailingRecorder, "at", at)
    with pytest.warns(RuntimeWarning, match="could not capture a CUDA graph") as record:
        masks = list(short_session(failing))
    graphs = failing.graphs
    assert graphs is not None and len(graphs) == 0
    assert {key[0] for key in graphs.refused} == {"encode", "track"}
    # One warning and one attempt for each key.
    assert len(record) == len(graphs.refused) == FailingRecorder.attempts
    failing.graphs = None
    for a, b in zip(masks, short_session(failing), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("at", ["warm-up", "capture"])
@pytest.mark.parametrize("bad", [0, 1, 2])
def test_clicks_give_the_same_masks_and_other_keys_are_captured(
    failing: SAM2VideoPredictor, at: str, bad: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FailingRecorder, "at", at)
    monkeypatch.setattr(FailingRecorder, "fails", only(bad))
    with_graphs = SAM2ImagePredictor(failing)
    with_graphs.graphs = UnconditionalGraphs()
    eager = SAM2ImagePredictor(failing)
    eager.graphs = None
    both = (with_graphs, eager)

    def click() -> None:
        hint = None
        for i in range(6):
            for predictor in both:
                predictor.set_image(frames(6)[i])
            results = [p.predict([[10.0 + i, 30.0]], [1], mask_input=hint) for p in both]
            assert all(np.array_equal(a, b) for a, b in zip(*results, strict=True)), i
            hint = results[0][2][:1] if i > 1 else None

    with pytest.warns(RuntimeWarning) as record:
        click()
    kinds = ["encode", "decode", "decode"]
    assert [key[0] for key in with_graphs.graphs.refused] == [kinds[bad]]
    assert len(record) == 1
    assert FailingRecorder.attempts == 3
    assert len(with_graphs.graphs) == 2


def test_the_warning_names_the_work_the_reason_and_the_way_out(
    failing: SAM2VideoPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FailingRecorder, "at", "capture")
    graphs = UnconditionalGraphs()
    with pytest.warns(RuntimeWarning) as record:
        encodes_equally(graphs, failing)
    message = str(record[0].message)
    for part in (
        "the image encoder",
        "not permitted when stream is capturing",
        "without a CUDA graph from now on",
        "`graphs` to None",
    ):
        assert part in message
    assert "advice" not in message, "only the first line of torch's message is quoted"
    assert list(graphs.refused.values()) == [
        "RuntimeError: CUDA error: operation not permitted when stream is capturing"
    ]


@pytest.mark.filterwarnings("ignore:sam2_fast could not capture")
@torch.no_grad()
def test_refused_keys_are_tried_again_after_the_weights_have_changed(
    failing: SAM2VideoPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FailingRecorder, "fails", only(0))
    graphs = UnconditionalGraphs()
    assert encodes_equally(graphs, failing) and encodes_equally(graphs, failing)
    assert len(graphs.refused) == 1 and FailingRecorder.attempts == 1
    failing.image_encoder.trunk.blocks[0].mlp.layers[0].weight.mul_(1.5)
    assert encodes_equally(graphs, failing) and encodes_equally(graphs, failing)
    assert len(graphs.refused) == 0 and len(graphs) == 1


@pytest.mark.filterwarnings("ignore:sam2_fast could not capture")
def test_the_number_of_refused_keys_is_bounded(
    failing: SAM2VideoPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs_module, "MAX_REFUSED", 2)
    graphs = UnconditionalGraphs()
    for count in (1, 2, 3):
        assert encodes_equally(graphs, failing, count)
    assert [key[1] for key in graphs.refused] == [(2, 3, 64, 64), (3, 3, 64, 64)]


def test_an_error_of_the_eager_run_is_raised_and_refuses_no_key(
    failing: SAM2VideoPredictor,
) -> None:
    graphs = UnconditionalGraphs()
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeError) as caught:
            graphs.encode(failing, torch.zeros(1, 5, 64, 64))  # images of five channels
    assert not isinstance(caught.value, CaptureError) and "channels" in str(caught.value)
    assert len(graphs.refused) == len(graphs) == 0


def test_an_interrupted_capture_does_not_count_as_failed(
    failing: SAM2VideoPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(FailingRecorder, "record", interrupt)
    graphs = UnconditionalGraphs()
    with pytest.raises(KeyboardInterrupt):
        encodes_equally(graphs, failing)
    assert len(graphs.refused) == len(graphs) == 0


def test_only_one_recorder_is_created(
    failing: SAM2VideoPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = []
    monkeypatch.setattr(FailingRecorder, "__init__", lambda self, device: devices.append(device))
    monkeypatch.setattr(FailingRecorder, "fails", only())
    graphs = UnconditionalGraphs()
    for _ in range(3):
        assert encodes_equally(graphs, failing)
    assert len(devices) == 1


def test_other_shapes_are_captured_if_the_capture_of_one_fails() -> None:
    pytest.importorskip("triton")
    interpret(PROGRAM)
