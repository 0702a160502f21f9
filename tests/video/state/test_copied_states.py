"""States are copied, stored, built by the caller, and edited so that masks change."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sam2_fast.memory import FrameMemory
from tests.video.conftest import moving_frames, write_clip
from tests.video.states import CLICK, COND, NON_COND, clicked, masks

# copies


def by_pickle(state: Any) -> Any:
    return pickle.loads(pickle.dumps(state))


@pytest.mark.parametrize("make_copy", [copy.deepcopy, by_pickle])
@pytest.mark.parametrize("source", ["array", "list", "folder", "video"])
def test_a_copy_continues_as_the_original(
    predictor: Any,
    clip: np.ndarray,
    plain: torch.Tensor,
    tmp_path: Path,
    make_copy: Callable[[Any], Any],
    source: str,
) -> None:
    state = clicked(predictor, opened(clip, source, tmp_path))
    masks(predictor, state, 0, 2)
    copied = make_copy(state)
    assert type(copied) is type(state) and copied.keep == state.keep
    original = masks(predictor, state, 3)
    assert torch.equal(masks(predictor, copied, 3), original)
    predictor.reset_state(copied)
    assert state.obj_ids == [1] and len(state["output_dict_per_obj"][0][NON_COND]) == 7
    if source != "video":  # compressed frames are others
        assert torch.equal(original, plain[3:])


def opened(clip: np.ndarray, source: str, folder: Path) -> Any:
    if source == "array":
        return clip
    if source == "list":
        return [*clip]
    if source == "folder":
        for i, frame in enumerate(clip):
            Image.fromarray(frame).save(folder / f"{i}.png")
        return folder
    return write_clip(folder / "clip.mp4", clip)


def test_a_copy_of_many_objects_is_not_larger_than_the_memories(
    predictor: Any, clip: np.ndarray
) -> None:
    state = clicked(predictor, clip, *range(12))
    list(predictor.propagate_in_video(state, 0, 2))
    one = clicked(predictor, clip)
    list(predictor.propagate_in_video(one, 0, 2))
    sizes = [len(pickle.dumps(s["output_dict_per_obj"])) for s in (one, state)]
    assert sizes[1] < 13 * sizes[0]


def test_a_state_of_an_iterator_is_copied_but_not_pickled(predictor: Any, clip: np.ndarray) -> None:
    state = clicked(predictor, iter(clip))
    masks(predictor, state, 0, 2)
    with pytest.raises(TypeError, match="its frames can be read only once"):
        pickle.dumps(state)
    copied = copy.deepcopy(state)
    assert torch.equal(masks(predictor, copied, 3, 2), masks(predictor, state, 3, 2))


@pytest.mark.parametrize("make_copy", [copy.deepcopy, by_pickle])
def test_a_copied_stream_continues_by_itself(
    predictor: Any, clip: np.ndarray, make_copy: Callable[[Any], Any]
) -> None:
    state = predictor.init_state(None)
    predictor.step(state, clip[0])
    predictor.add_new_points_or_box(state, 0, 1, **CLICK)
    predictor.step(state, clip[1])
    copied = make_copy(state)
    results = [predictor.step(s, frame)[2] for s in (state, copied) for frame in clip[2:4]]
    assert torch.equal(results[1], results[3]) and copied.keep == "reachable"


# dictionaries of the caller


@pytest.mark.field("B20")
def test_a_plain_dictionary_is_accepted(predictor: Any, clip: np.ndarray) -> None:
    state: dict[str, Any] = {**predictor.init_state(clip)}
    state["images"] = state["images"][:]
    assert type(state) is dict
    predictor.add_new_points_or_box(state, 0, "a", **CLICK)
    predictor.add_new_mask(state, 0, "b", clip[0, ..., 0] > 140)
    outputs = masks(predictor, state)
    expected = predictor.init_state(clip)
    predictor.add_new_points_or_box(expected, 0, "a", **CLICK)
    predictor.add_new_mask(expected, 0, "b", clip[0, ..., 0] > 140)
    assert torch.equal(outputs, masks(predictor, expected))
    predictor.clear_all_prompts_in_frame(state, 0, "b")
    assert state["mask_inputs_per_obj"] == {0: {}, 1: {}}
    assert predictor.remove_object(state, "a")[0] == ["b"] == state["obj_ids"]
    predictor.reset_state(state)
    assert state["obj_ids"] == [] and state["output_dict_per_obj"] == {}


def test_resetting_a_plain_dictionary_ends_its_propagation(
    predictor: Any, clip: np.ndarray
) -> None:
    state = {**clicked(predictor, clip)}
    frames = predictor.propagate_in_video(state)
    next(frames)
    predictor.reset_state(state)
    predictor.add_new_points_or_box(state, 0, 1, **CLICK)
    with pytest.raises(RuntimeError, match="was reset"):
        next(frames)


def test_what_is_not_a_state_is_refused(predictor: Any, state: Any) -> None:
    incomplete = {k: v for k, v in state.items() if k not in ("images", "constants")}
    with pytest.raises(ValueError, match=r"without \['constants', 'images'\]; call init_state"):
        predictor.reset_state(incomplete)
    with pytest.raises(TypeError, match="inference_state: expected the result of init_state"):
        predictor.reset_state([])


def test_ids_and_indices_that_do_not_match_are_refused(predictor: Any, state: Any) -> None:
    state["obj_ids"] = [1, 2]
    with pytest.raises(ValueError, match="expected 'obj_ids' and 'obj_id_to_idx' of the same"):
        list(predictor.propagate_in_video(state))
    state["obj_ids"], state["obj_id_to_idx"] = ["renamed"], {"renamed": 0}
    assert next(predictor.propagate_in_video(state))[1] == ["renamed"]


def test_objects_can_be_removed_as_the_official_predictor_does(
    predictor: Any, clip: np.ndarray
) -> None:
    state = clicked(predictor, clip, "a", "b")
    predictor.add_new_mask(state, 0, "b", clip[0, ..., 0] > 140)
    list(predictor.propagate_in_video(state, 0, 2))
    expected = copy.deepcopy(state)
    predictor.remove_object(expected, "a")
    state["obj_id_to_idx"], state["obj_idx_to_id"], state["obj_ids"] = {"b": 0}, {0: "b"}, ["b"]
    for name in [key for key in state if key.endswith("_per_obj")]:
        entries = state[name]
        entries[0] = entries.pop(1)
    assert torch.equal(masks(predictor, state, 3), masks(predictor, expected, 3))


# edits that decide on masks


def test_a_prompt_in_the_state_is_used_by_the_next_click(predictor: Any, state: Any) -> None:
    expected = predictor.init_state(moving_frames(8))
    predictor.add_new_points_or_box(expected, 0, 1, **CLICK)
    predictor.add_new_points_or_box(
        expected, 0, 1, points=[[40, 30]], labels=[0], clear_old_points=False
    )
    inputs = state["point_inputs_per_obj"][0][0]
    assert inputs["point_coords"].shape == (1, 1, 2)
    state["point_inputs_per_obj"][0].pop(0)
    result = predictor.add_new_points_or_box(
        state, 0, 1, points=[[40, 30]], labels=[0], clear_old_points=False
    )[2]
    together = state["point_inputs_per_obj"][0][0]["point_coords"]
    assert together.shape == (1, 1, 2)
    assert not torch.equal(result, predictor._tracker(expected).newest_output(expected, 0)[2])


def test_frames_tracked_decide_whether_a_click_uses_memories(predictor: Any, state: Any) -> None:
    list(predictor.propagate_in_video(state))
    corrected = copy.deepcopy(state)
    predictor.add_new_points_or_box(corrected, 3, 1, **CLICK)
    assert list(corrected["temp_output_dict_per_obj"][0][NON_COND]) == [3]
    assert state["frames_tracked_per_obj"][0].pop(3) == {"reverse": False}
    predictor.add_new_points_or_box(state, 3, 1, **CLICK)
    assert list(state["temp_output_dict_per_obj"][0][COND]) == [3]


def test_positions_in_constants_are_used_for_all_maps(
    predictor: Any, clip: np.ndarray, plain: torch.Tensor
) -> None:
    state = clicked(predictor, clip)
    predictor.propagate_in_video_preflight(state)
    positions = state["constants"]["maskmem_pos_enc"]
    state["constants"]["maskmem_pos_enc"] = [x.clone() for x in positions]
    assert torch.equal(masks(predictor, state), plain), "equal positions"
    other = clicked(predictor, clip)
    other["constants"]["maskmem_pos_enc"] = [x * 3 for x in positions]
    changed = masks(predictor, other)
    assert torch.equal(changed[0], plain[0]) and not torch.allclose(changed[3], plain[3])


def test_positions_of_one_output_are_used_for_its_map(
    predictor: Any, state: Any, plain: torch.Tensor
) -> None:
    list(predictor.propagate_in_video(state, 0, 3))
    output = state["output_dict_per_obj"][0][NON_COND][3]
    output["maskmem_pos_enc"][0] = output["maskmem_pos_enc"][0] * 3
    changed = masks(predictor, state, 4)
    assert not torch.allclose(changed[0], plain[4])
    predictor.add_new_points_or_box(state, 4, 1, **CLICK)


def test_an_encoded_preview_is_not_encoded_again(predictor: Any, state: Any) -> None:
    preview = state["temp_output_dict_per_obj"][0][COND][0]
    preview["maskmem_features"] = torch.full((1, 64, 4, 4), 0.5)
    preview["maskmem_pos_enc"] = [predictor._memory_map_position(torch.float32)]
    predictor.propagate_in_video_preflight(state)
    stored = state["output_dict_per_obj"][0][COND][0]
    assert (stored["maskmem_features"] == 0.5).all()
    assert len(masks(predictor, state)) == 8


def test_a_memory_of_a_plain_dictionary_has_its_tensors_without_a_batch() -> None:
    output = {
        "maskmem_features": torch.rand(1, 64, 4, 4),
        "maskmem_pos_enc": [torch.rand(1, 64, 4, 4)],
        "pred_masks": torch.rand(1, 1, 16, 16),
        "obj_ptr": torch.rand(1, 256),
        "object_score_logits": torch.rand(1, 1),
    }
    memory = FrameMemory.of(output)
    assert torch.equal(memory.map.t().reshape(1, 64, 4, 4), output["maskmem_features"])
    assert memory.pointer.shape == (256,) and memory.presence.shape == (1,)
    assert memory["obj_ptr"] is output["obj_ptr"] and dict(memory) == output
    restored = pickle.loads(pickle.dumps(memory))
    assert all(torch.equal(restored[k], v) for k, v in output.items() if k != "maskmem_pos_enc")
