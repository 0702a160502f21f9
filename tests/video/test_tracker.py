"""The tracker: previews, memories, the feature cache, overridden methods, `repr` and help texts."""

from __future__ import annotations

import pydoc
import re
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sam2_fast import SAM2ImagePredictor, SAM2VideoPredictor
from sam2_fast.memory import FrameMemory
from sam2_fast.model import Sam2
from sam2_fast.recording.refusals import overridden
from sam2_fast.recording.runner import Runner
from sam2_fast.video.tracker import Tracker
from tests.video.sessions import frames, small_predictor


@pytest.fixture
def predictor() -> SAM2VideoPredictor:
    return small_predictor()


def prompted_state(predictor: SAM2VideoPredictor) -> Any:
    state = predictor.init_state(frames(4))
    predictor.add_new_points_or_box(state, 0, "car", points=[[20.0, 30.0]], labels=[1])
    return state


def test_a_prompt_adds_a_preview_and_a_commit_replaces_it_by_a_memory(
    predictor: SAM2VideoPredictor,
) -> None:
    state = prompted_state(predictor)
    preview = state.objects["car"].previews[0]
    assert type(preview) is FrameMemory and preview.map is None
    outputs = state["temp_output_dict_per_obj"][0]["cond_frame_outputs"]
    assert outputs[0]["maskmem_features"] is None
    predictor.propagate_in_video_preflight(state)
    memory = state.objects["car"].bank.prompted[0]
    assert type(memory) is FrameMemory and memory.map is not None
    assert not state.objects["car"].previews
    assert torch.equal(memory.logits, preview.logits)


def test_features_of_a_frame_are_computed_once_for_all_objects(
    predictor: SAM2VideoPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = prompted_state(predictor)
    calls = []
    original = predictor.encode_image

    def encode_image(images: torch.Tensor) -> Any:
        calls.append(1)
        return original(images)

    monkeypatch.setattr(predictor, "encode_image", encode_image)
    predictor.add_new_points_or_box(state, 0, "dog", points=[[40.0, 30.0]], labels=[1])
    assert not calls
    list(predictor.propagate_in_video(state))
    assert len(calls) == 3


@torch.inference_mode()
def test_a_tracker_can_be_used_with_several_sessions(predictor: SAM2VideoPredictor) -> None:
    tracker = Tracker(predictor)
    states = [prompted_state(predictor) for _ in range(2)]
    for state in states:
        tracker.commit(state)
    masks = [tracker.track_frame(state, 1, 1) for state in states]
    assert torch.equal(*masks) and masks[0].shape == (1, 1, 16, 16)
    assert tracker.remove(states[0], "car") == [0] and not states[0].objects and states[1].objects


class DoublingPredictor(SAM2VideoPredictor):
    def without_memory(self, low: torch.Tensor) -> torch.Tensor:
        return 2 * super().without_memory(low)


def test_overridden_methods_of_the_model_are_detected(
    predictor: SAM2VideoPredictor,
) -> None:
    assert overridden(predictor) == []
    assert overridden(DoublingPredictor(predictor.config)) == ["without_memory"]
    for name in ("encode_image", "_attend_by_op", "recall_limits"):
        subclass = type("Changed", (SAM2VideoPredictor,), {name: lambda self, *_: None})
        assert overridden(subclass(predictor.config)) == [name]
    predictor.__dict__["point_to"] = lambda *_: None
    assert overridden(predictor) == ["point_to"]


def test_a_runner_without_graphs_runs_the_model(predictor: SAM2VideoPredictor) -> None:
    runner = Runner(predictor, predictor.graphs)
    images = torch.zeros(1, 3, 64, 64)
    assert runner.graphs is None and runner.fingerprint() is None, "a CPU has no CUDA graphs"
    assert torch.equal(runner.encode(images).low, predictor.encode_image(images).low)


def test_the_help_text_of_the_predictor_is_short(predictor: SAM2VideoPredictor) -> None:
    text = pydoc.render_doc(SAM2VideoPredictor, renderer=pydoc.plaintext)
    assert len(text.splitlines()) <= 250 and "propagate_in_video" in text and "add_new_mask" in text
    assert {"to", "state_dict", "fill_hole_area", "propagate_in_video"} <= set(dir(predictor))


def test_a_subclass_may_inherit_from_an_abstract_class(predictor: SAM2VideoPredictor) -> None:
    class Segmenter(ABC):
        @abstractmethod
        def segment(self) -> int: ...

    class Mixed(SAM2VideoPredictor, Segmenter):
        def segment(self) -> int:
            return 1

    assert Mixed(predictor.config).segment() == 1 and isinstance(predictor, torch.nn.Module)


def test_the_repr_of_models_and_sessions_is_one_line(predictor: SAM2VideoPredictor) -> None:
    state = prompted_state(predictor)
    objects = "objects ['car'], prompted on [0], keep='all', cpu)"
    assert repr(state) == f"InferenceState(4 frames of 80 x 60, {objects}"
    stream = "InferenceState(a stream of 0 x 0, objects [], prompted on []"
    assert repr(predictor.init_state(None)).startswith(stream)
    model = "SAM2VideoPredictor(version='2.1', image_size=64, embed_dim=16"
    assert repr(predictor).startswith(model) and "\n" not in repr(predictor)
    assert "\n" not in repr(Sam2(predictor.config)) and "float32 on cpu" in repr(predictor)
    assert "\n" in torch.nn.Module.__repr__(predictor), "the tree of modules is still available"
    images = SAM2ImagePredictor(predictor)
    images.set_image(np.zeros((8, 8, 3), np.uint8))
    assert "\n" not in repr(images)


def test_errors_name_the_invalid_argument(predictor: SAM2VideoPredictor) -> None:
    state = prompted_state(predictor)
    with pytest.raises(IndexError, match=r"^start_frame_idx: expected 0\.\.3, got 99"):
        predictor.propagate_in_video(state, start_frame_idx=99)
    with pytest.raises(TypeError, match=r"^start_frame_idx: expected an integer, got float"):
        predictor.propagate_in_video(state, start_frame_idx=1.5)
    with pytest.raises(IndexError, match=r"^frame_idx: expected 0\.\.3, got 4"):
        predictor.add_new_points_or_box(state, 4, "car", points=[[1, 1]], labels=[1])


def test_the_architecture_page_lists_every_transition_of_a_session() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| [^|]+ \| [^|]+ \| [^|]+ \| `(\w+)`[^|]* \|", page, re.MULTILINE)
    transitions = {"preview_points", "preview_mask", "commit", "track_frame", "clear", "remove"}
    others = {"open", "propagate", "newest_output", "output"}  # they start, repeat and read
    assert set(rows) | {"preview_mask"} == transitions
    assert "`preview_mask` replaces `preview_points`" in page
    members = vars(Tracker).items()
    methods = {name for name, member in members if callable(member) and not name.startswith("_")}
    assert methods == transitions | others
