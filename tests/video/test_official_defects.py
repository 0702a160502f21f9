"""Defects of the official video predictor that are fixed here, one test each.

Defects of refused prompts, of sessions that are changed in the loop and of failures within a frame
are rows 20 to 28 in `test_bad_input.py`; `test_streaming.py` has those of bounded memory and of
several objects in one pass.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch

from sam2_fast.build_sam import build_sam2_video_predictor
from sam2_fast.config import Sam2Config

CLICK = {"points": [[20, 20]], "labels": [1]}


def test_clear_non_cond_mem_around_input_drops_memories_nearby(
    make_predictor: Any, clip: Any
) -> None:
    predictor = make_predictor(clear_non_cond_mem_around_input=True)
    state = predictor.init_state(clip)
    predictor.add_new_points_or_box(state, 0, 1, **CLICK)
    list(predictor.propagate_in_video(state))
    predictor.add_new_points_or_box(state, 12, 1, **CLICK)
    predictor.propagate_in_video_preflight(state)
    tracked = set(state.objects[1].bank.tracked)
    assert not tracked & (set(range(5, 20)) - {12}) and {1, 2, 3, 4, 12} <= tracked
    assert len(list(predictor.propagate_in_video(state))) == 20


def test_memories_have_the_compute_dtype(predictor: Any, clip: Any) -> None:
    state = predictor.init_state(clip)
    predictor.add_new_points_or_box(state, 0, 1, **CLICK)
    list(predictor.propagate_in_video(state, max_frame_num_to_track=1))
    assert state.objects[1].bank.tracked[1].map.dtype == torch.float32


def test_frames_are_read_when_they_are_needed(predictor: Any, clip: Any) -> None:
    reads: list[int] = []

    def camera() -> Any:
        for i, picture in enumerate(clip):
            reads.append(i)
            yield picture

    state = predictor.init_state(camera())
    assert len(reads) <= 2
    predictor.add_new_points_or_box(state, 0, 1, **CLICK)
    for frame, _, _ in predictor.propagate_in_video(state):
        assert len(reads) <= frame + 2
    assert frame == len(clip) - 1


def test_a_corrected_frame_can_become_a_prompted_frame(make_predictor: Any, clip: Any) -> None:
    predictor = make_predictor(add_all_frames_to_correct_as_cond=True)
    state = predictor.init_state(clip)
    predictor.add_new_points_or_box(state, 0, 1, **CLICK)
    list(predictor.propagate_in_video(state))
    predictor.add_new_points_or_box(state, 6, 1, **CLICK)
    predictor.propagate_in_video_preflight(state)
    assert set(state.objects[1].bank.prompted) == {0, 6} and 6 not in state.objects[1].bank.tracked


def test_a_mask_corrects_a_tracked_frame(predictor: Any, clip: Any) -> None:
    state = predictor.init_state(clip)
    predictor.add_new_points_or_box(state, 0, 1, **CLICK)
    list(predictor.propagate_in_video(state))
    mask = np.zeros((48, 72), bool)
    mask[10:30, 20:50] = True
    corrected = predictor.add_new_mask(state, 5, 1, mask)[2]
    masks = {f: m.clone() for f, _, m in predictor.propagate_in_video(state, 0)}
    assert torch.equal(masks[5], corrected)


def test_removing_an_object_returns_the_frames_on_which_it_was_prompted(
    predictor: Any, clip: Any
) -> None:
    state = predictor.init_state(clip)
    for obj_id, frame in ((1, 0), (2, 3), (2, 7)):
        predictor.add_new_points_or_box(state, frame, obj_id, **CLICK)
    ids, updated = predictor.remove_object(state, 2)
    assert ids == [1]
    assert [f for f, _ in updated] == [3, 7]
    assert all(m.shape == (1, 1, 48, 72) for _, m in updated)
    assert predictor.remove_object(state, 9) == ([1], [])
    with pytest.raises(RuntimeError, match="doesn't exist"):
        predictor.remove_object(state, 9, strict=True)


def test_the_default_device_is_a_gpu_if_available_and_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = Sam2Config(
        embed_dim=16, stages=(1, 1, 1, 1), global_blocks=(), image_size=64, memory_layers=1
    )
    with caplog.at_level(logging.INFO, logger="sam2_fast"):
        model = build_sam2_video_predictor(config)
    assert model.device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert [r.getMessage() for r in caplog.records] == [
        f"no device named: using {model.device.type}"
    ]


def test_the_official_keys_of_the_inference_state_can_be_read(predictor: Any, clip: Any) -> None:
    state = predictor.init_state(clip)
    predictor.add_new_points_or_box(state, 0, "cat", **CLICK)
    list(predictor.propagate_in_video(state, max_frame_num_to_track=2))
    assert (state["num_frames"], state["video_height"], state["video_width"]) == (20, 48, 72)
    assert state["obj_ids"] == ["cat"]
    assert state["obj_id_to_idx"] == {"cat": 0}
    assert state["obj_idx_to_id"] == {0: "cat"}
    outputs = state["output_dict_per_obj"][0]
    assert set(outputs["cond_frame_outputs"]) == {0}
    assert set(outputs["non_cond_frame_outputs"]) == {1, 2}
    assert outputs["non_cond_frame_outputs"][1]["pred_masks"].shape == (1, 1, 16, 16)
    assert state["frames_tracked_per_obj"][0] == {f: {"reverse": False} for f in (0, 1, 2)}
    assert all(key in state and state[key] is not None for key in state.keys())  # noqa: SIM118
    assert state.get("no such key") is None
    with pytest.raises(KeyError, match="known keys"):
        state["no such key"]
