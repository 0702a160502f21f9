"""`inference_state` is a dictionary whose outputs, features and frames may be changed."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sam2_fast.io.transforms import frame_input
from sam2_fast.video.inference_state import KEYS
from tests.video.conftest import moving_frames
from tests.video.states import CLICK, COND, NON_COND, clicked, masks

# a dictionary


def test_it_is_a_dictionary_of_the_official_keys(state: Any) -> None:
    assert isinstance(state, dict) and set(state) == set(KEYS) and len(state) == len(KEYS)
    assert dict(state.items()) == {**state} and state.pop("constants") == {}
    state["constants"] = {}
    state.setdefault("own", []).append(3)
    assert state["own"] == [3] and state.get("no such key") is None
    with pytest.raises(KeyError, match="known keys"):
        state["no such key"]


def test_its_text_does_not_raise_while_it_is_edited(state: Any) -> None:
    assert repr(state).startswith(
        "InferenceState(8 frames of 72 x 48, objects [1], prompted on [0]"
    )
    state["obj_ids"] = [1, 2]
    assert "objects [1, 2]" in repr(state)
    del state["images"]
    assert "images" not in repr(state) and "obj_ids" in repr(state)


def test_an_output_is_a_dictionary(predictor: Any, state: Any) -> None:
    predictor.propagate_in_video_preflight(state)
    output = state["output_dict_per_obj"][0][COND][0]
    assert isinstance(output, dict) and len(output) == 5
    names = ["maskmem_features", "maskmem_pos_enc", "pred_masks", "obj_ptr", "object_score_logits"]
    assert list(output) == names == list(dict(output)) == list(output.copy()) == [*output.keys()]
    assert list(reversed(output)) == names[::-1]
    merged = output | {"note": 1}
    assert type(merged) is dict and set(merged) == {*names, "note"}
    assert list({"note": 1} | output) == ["note", *names]
    output |= {"note": 2}
    assert output["note"] == 2 and output.pop("note") == 2 and "note" not in output
    removed = output.pop("maskmem_features")
    assert removed.shape == (1, 64, 4, 4) and "maskmem_features" not in output
    assert "obj_ptr" in repr(output)


def test_reading_an_output_does_not_copy_its_tensors(predictor: Any, state: Any) -> None:
    predictor.propagate_in_video_preflight(state)
    output = state["output_dict_per_obj"][0][COND][0]
    for name, tensor in (("maskmem_features", output.map), ("pred_masks", output.logits)):
        assert output[name].data_ptr() == tensor.data_ptr()
    assert output.is_compact
    features = output["maskmem_features"]
    output["maskmem_features"] = features
    assert not output.is_compact and torch.equal(output.map, features[0].flatten(1).t())


def test_features_of_a_wrapped_output_survive_tracking(
    predictor: Any, state: Any, plain: torch.Tensor
) -> None:
    predictor.propagate_in_video_preflight(state)
    output = state["output_dict_per_obj"][0][COND][0]
    output["iou"] = 0.5
    assert torch.equal(masks(predictor, state), plain)
    assert state["output_dict_per_obj"][0][COND][0]["iou"] == 0.5


# memory


def test_removing_outputs_frees_their_memory(predictor: Any, clip: np.ndarray) -> None:
    state = clicked(predictor, clip)
    list(predictor.propagate_in_video(state))
    tracked = state["output_dict_per_obj"][0][NON_COND]
    maps = {frame: weakref.ref(output.map) for frame, output in tracked.items()}
    for frame in (1, 2, 3):
        tracked.pop(frame)
    del state["output_dict_per_obj"][0][NON_COND][4]
    gc.collect()
    assert {frame for frame, reference in maps.items() if reference() is None} == {1, 2, 3, 4}
    state["output_dict_per_obj"].clear()
    del tracked
    gc.collect()
    assert all(reference() is None for reference in maps.values())


@pytest.mark.parametrize("action", ["reset", "remove", "delete"])
def test_a_state_keeps_no_reference_to_removed_objects(
    predictor: Any, clip: np.ndarray, action: str
) -> None:
    state = clicked(predictor, clip)
    list(predictor.propagate_in_video(state))
    memory = weakref.ref(state.objects[1].bank.tracked[3])
    gc.collect()
    gc.disable()  # without cycles, nothing has to be collected
    try:
        if action == "reset":
            predictor.reset_state(state)
        elif action == "remove":
            predictor.remove_object(state, 1)
        else:
            del state
        assert memory() is None
    finally:
        gc.enable()


def test_cached_features_can_be_cleared(predictor: Any, state: Any, plain: torch.Tensor) -> None:
    features = weakref.ref(state["cached_features"][0].features.low)
    state["cached_features"].clear()
    assert features() is None
    assert torch.equal(masks(predictor, state), plain)
    assert list(state["cached_features"]) == [7]


def test_an_entry_without_features_is_computed(
    predictor: Any, state: Any, plain: torch.Tensor
) -> None:
    state["cached_features"] = {0: (None, None)}
    assert torch.equal(masks(predictor, state), plain)


def test_cached_features_of_other_positions_are_refused(predictor: Any, state: Any) -> None:
    image, backbone_out = state["cached_features"][0]
    positions = [x + 1 for x in backbone_out["vision_pos_enc"]]
    state["cached_features"][0] = image, backbone_out | {"vision_pos_enc": positions}
    with pytest.raises(ValueError, match="override _get_image_feature"):
        predictor.add_new_points_or_box(state, 0, 1, **CLICK)


# frames


def test_images_are_read_when_they_are_indexed(predictor: Any, clip: np.ndarray) -> None:
    images = predictor.init_state(clip)["images"]
    expected = frame_input(clip[3], 64)
    assert len(images) == 8 and images.shape == (8, 3, 64, 64)
    assert torch.equal(images[3], expected) and torch.equal(images[-5], expected)
    assert images[2:4].shape == (2, 3, 64, 64) and images[8:].shape == (0, 3, 64, 64)
    assert torch.cat([images, images]).shape == (16, 3, 64, 64)
    assert images.to(torch.bfloat16).dtype == torch.bfloat16
    assert torch.equal(torch.stack(list(images)), images[:])
    with pytest.raises(IndexError):
        images[8]


ASSIGNED: dict[str, Callable[[Any], Any]] = {
    "tensor": lambda images: images[:],
    "half": lambda images: images[:].double(),
    "list": lambda images: [*images],
    "dictionary": lambda images: dict(enumerate(images)),
    "pictures": lambda images: [*moving_frames(8)],
    "Pillow": lambda images: [Image.fromarray(frame) for frame in moving_frames(8)],
}


@pytest.mark.parametrize("kind", ASSIGNED)
def test_images_can_be_assigned(predictor: Any, state: Any, plain: torch.Tensor, kind: str) -> None:
    state["images"] = ASSIGNED[kind](state["images"])
    assert torch.equal(masks(predictor, state), plain)


def test_one_image_can_be_replaced(predictor: Any, state: Any, plain: torch.Tensor) -> None:
    state["images"][2] = torch.zeros(3, 64, 64)
    changed = masks(predictor, state)
    assert torch.equal(changed[:2], plain[:2]) and not torch.equal(changed[2], plain[2])


def test_an_assigned_image_of_another_size_is_refused(predictor: Any, state: Any) -> None:
    state["images"] = torch.zeros(8, 3, 48, 48)
    with pytest.raises(ValueError, match=r"images: expected normalised frames \[3, 64, 64\]"):
        list(predictor.propagate_in_video(state, 1))


def test_frames_can_be_appended_between_propagations(
    predictor: Any, clip: np.ndarray, plain: torch.Tensor
) -> None:
    state = clicked(predictor, clip)
    images = state["images"]
    state["images"], state["num_frames"] = images[:3], 3
    assert len(masks(predictor, state)) == 3
    state["images"], state["num_frames"] = torch.cat([state["images"], images[3:6]]), 6
    assert len(masks(predictor, state, 3)) == 3
    with pytest.raises(IndexError, match="frame_idx"):
        predictor.add_new_points_or_box(state, 6, 1, **CLICK)


def test_images_assigned_during_a_propagation_are_used(
    predictor: Any, state: Any, plain: torch.Tensor
) -> None:
    collected = []
    for frame, _, logits in predictor.propagate_in_video(state):
        collected.append(logits.clone())
        if frame == 3:
            state["images"] = torch.zeros(8, 3, 64, 64)
    assert torch.equal(torch.stack(collected[:4]), plain[:4])
    assert not torch.equal(collected[4], plain[4])


def test_the_size_of_outputs_is_that_of_the_state(predictor: Any, state: Any) -> None:
    state["video_height"], state["video_width"] = 20, 30
    assert masks(predictor, state, 0, 0).shape == (1, 1, 1, 20, 30)


def test_the_length_of_an_iterator_is_in_the_state_once_it_is_known(
    predictor: Any, clip: np.ndarray
) -> None:
    state = clicked(predictor, iter(clip))
    assert state["num_frames"] is None
    assert len(masks(predictor, state)) == 8 and state["num_frames"] == 8
