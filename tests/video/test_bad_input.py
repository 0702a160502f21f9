"""Rows 1 to 28 of the robustness table: invalid input is refused and changes nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sam2_fast.video import frame_steps

CLICK = {"points": [[20, 20]], "labels": [1]}


@pytest.fixture
def state(predictor: Any, clip: Any) -> Any:
    session = predictor.init_state(clip)
    predictor.add_new_points_or_box(session, 0, 1, **CLICK)
    return session


REFUSED: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("row 1: points without labels", {"points": [[1, 1]]}, ValueError, "labels"),
    ("row 1: labels without points", {"labels": [1]}, ValueError, "points"),
    ("row 2: frame past the end", {**CLICK, "frame_idx": 20}, IndexError, "0..19"),
    ("row 3: negative frame", {**CLICK, "frame_idx": -1}, IndexError, "got -1"),
    ("row 4: float frame", {**CLICK, "frame_idx": 1.0}, TypeError, "integer"),
    ("row 4: bool frame", {**CLICK, "frame_idx": True}, TypeError, "bool"),
    ("row 9: NaN point", {"points": [[float("nan"), 1]], "labels": [1]}, ValueError, "points"),
    ("row 10: infinite box", {"box": [0, 0, float("inf"), 5]}, ValueError, "box"),
    ("row 12: reversed box", {"box": [30, 30, 10, 10]}, ValueError, "swap"),
    ("row 13: label 7", {"points": [[1, 1]], "labels": [7]}, ValueError, "got 7"),
    (
        "row 14: three points, one label",
        {"points": [[1, 1], [2, 2], [3, 3]], "labels": [1]},
        ValueError,
        "one per point",
    ),
    ("row 15: two boxes", {"box": [[0, 0, 5, 5], [1, 1, 6, 6]]}, ValueError, "one box per object"),
    ("row 16: no points", {"points": np.zeros((0, 2)), "labels": []}, ValueError, "at least one"),
    (
        "box added to earlier clicks",
        {"box": [0, 0, 5, 5], "clear_old_points": False},
        ValueError,
        "clear_old_points",
    ),
    ("points of three numbers", {"points": [[1, 1, 1]], "labels": [1]}, ValueError, r"\(P, 2\)"),
    ("text as points", {"points": "here", "labels": [1]}, ValueError, "points"),
]


@pytest.mark.parametrize(
    ("arguments", "error", "message"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED]
)
@pytest.mark.parametrize("obj_id", [1, 2])
def test_a_refused_prompt_changes_nothing(
    predictor: Any,
    state: Any,
    snapshot: Any,
    obj_id: int,
    arguments: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    before = snapshot(state)
    with pytest.raises(error, match=message):
        predictor.add_new_points_or_box(state, **{"frame_idx": 0, "obj_id": obj_id, **arguments})
    assert snapshot(state) == before
    outputs = list(predictor.propagate_in_video(state, max_frame_num_to_track=1))
    assert [ids for _, ids, _ in outputs] == [[1], [1]]


@pytest.mark.parametrize("frame", [torch.tensor(1), np.int64(1)])
def test_row_4_integers_of_other_libraries_are_frame_numbers(
    predictor: Any, state: Any, frame: Any
) -> None:
    number, _, _ = predictor.add_new_points_or_box(state, frame, 1, **CLICK)
    assert number == 1 and type(number) is int


def test_row_5_clearing_an_unknown_object_is_refused(
    predictor: Any, state: Any, snapshot: Any
) -> None:
    before = snapshot(state)
    with pytest.raises(ValueError, match=r"9 is unknown; existing ids: \[1\]"):
        predictor.clear_all_prompts_in_frame(state, 0, 9)
    assert snapshot(state) == before


@pytest.mark.parametrize(
    "mask", [np.zeros((1, 48, 72)), np.zeros((48,)), np.zeros((0, 72)), np.full((48, 72), np.nan)]
)
def test_row_6_masks_of_other_shapes_are_refused(
    predictor: Any, state: Any, snapshot: Any, mask: Any
) -> None:
    before = snapshot(state)
    with pytest.raises(ValueError, match="mask"):
        predictor.add_new_mask(state, 0, 2, mask)
    assert snapshot(state) == before


@pytest.mark.parametrize("size", [(64, 64), (48, 72)])
def test_row_7_a_mask_of_0_and_255_equals_the_boolean_one(
    predictor: Any, clip: Any, size: tuple[int, int]
) -> None:
    boolean = np.zeros(size, bool)
    boolean[10:30, 10:30] = True
    expected = predictor.add_new_mask(predictor.init_state(clip), 0, 1, boolean)[2]
    integers = boolean.astype(np.uint8) * 255
    for mask in (boolean * 255.0, integers, torch.from_numpy(boolean).float() * 255):
        masks = predictor.add_new_mask(predictor.init_state(clip), 0, 1, mask)[2]
        assert torch.equal(masks, expected)


def test_row_8_the_object_of_an_empty_mask_is_absent(predictor: Any, clip: Any) -> None:
    state = predictor.init_state(clip)
    masks = predictor.add_new_mask(state, 0, 1, np.zeros((48, 72), bool))[2]
    assert (masks < 0).all() and state.objects[1].previews[0].presence < 0
    assert len(list(predictor.propagate_in_video(state, max_frame_num_to_track=2))) == 3


def test_row_11_points_outside_the_image_are_used_with_a_warning(predictor: Any, clip: Any) -> None:
    with pytest.warns(UserWarning, match="outside") as caught:
        predictor.add_new_points_or_box(predictor.init_state(clip), 0, 1, [[1e6, -1e6]], [1])
    assert len(caught) == 1 and caught[0].filename == __file__


POINT_TENSORS = {
    "int64": torch.tensor([[20, 20]]),
    "non-contiguous": torch.tensor([[20.0, 0.0, 20.0, 0.0]])[:, ::2],
    "requires_grad": torch.tensor([[20.0, 20.0]], requires_grad=True),
    "float64": torch.tensor([[20.0, 20.0]], dtype=torch.float64),
}


@pytest.mark.parametrize("points", POINT_TENSORS.values(), ids=list(POINT_TENSORS))
def test_rows_17_and_18_points_may_be_tensors_of_any_kind_and_are_not_modified(
    predictor: Any, clip: Any, points: torch.Tensor
) -> None:
    before = points.detach().clone()
    expected = predictor.add_new_points_or_box(predictor.init_state(clip), 0, 1, **CLICK)[2]
    state = predictor.init_state(clip)
    masks = predictor.add_new_points_or_box(state, 0, 1, points, torch.tensor([1]))[2]
    assert torch.equal(expected, masks) and torch.equal(points.detach(), before)


def test_row_17_a_box_tensor_without_points(predictor: Any, clip: Any) -> None:
    tensor = torch.tensor([5.0, 5, 30, 30])
    corners = [[5, 5], [30, 30]]
    a, b = (
        predictor.add_new_points_or_box(predictor.init_state(clip), 0, 1, box=box)[2]
        for box in (tensor, corners)
    )
    assert torch.equal(a, b)


def test_row_19_propagating_without_objects_is_refused(predictor: Any, clip: Any) -> None:
    state = predictor.init_state(clip)
    with pytest.raises(RuntimeError, match="please add inputs first"):
        list(predictor.propagate_in_video(state))


def test_row_20_an_object_without_prompts_is_paused_and_the_others_are_tracked(
    predictor: Any, clip: Any
) -> None:
    state = predictor.init_state(clip)
    predictor.add_new_points_or_box(state, 0, 1, **CLICK)
    predictor.add_new_points_or_box(state, 0, 2, **CLICK)
    list(predictor.propagate_in_video(state, max_frame_num_to_track=3))
    predictor.clear_all_prompts_in_frame(state, 0, 2)
    outputs = list(predictor.propagate_in_video(state, max_frame_num_to_track=5))
    assert len(outputs) == 6 and outputs[-1][1] == [1, 2]
    assert (outputs[-1][2][0] > 0).any() and (outputs[-1][2][1] < -1000).all()


def test_row_20_propagating_without_any_prompt_is_refused(predictor: Any, state: Any) -> None:
    predictor.clear_all_prompts_in_frame(state, 0, 1)
    with pytest.raises(RuntimeError, match="no object has a prompt"):
        list(predictor.propagate_in_video(state))


def test_row_21_an_object_removed_in_the_loop_is_missing_from_the_next_frame_on(
    predictor: Any, state: Any
) -> None:
    predictor.add_new_points_or_box(state, 0, 2, **CLICK)
    ids = []
    for frame, object_ids, _ in predictor.propagate_in_video(state, max_frame_num_to_track=5):
        ids.append(object_ids)
        if frame == 2:
            predictor.remove_object(state, 1)
    assert ids == [[1, 2]] * 3 + [[2]] * 3


def test_row_22_an_object_added_in_the_loop_appears_on_the_next_frame(
    predictor: Any, state: Any
) -> None:
    ids = []
    for frame, object_ids, _ in predictor.propagate_in_video(state, max_frame_num_to_track=5):
        ids.append(object_ids)
        if frame == 2:
            predictor.add_new_points_or_box(state, 2, "late", **CLICK)
    assert ids == [[1]] * 3 + [[1, "late"]] * 3


def test_row_23_a_reset_in_the_loop_ends_it_with_an_error(predictor: Any, state: Any) -> None:
    with pytest.raises(RuntimeError, match="was reset"):
        for frame, _, _ in predictor.propagate_in_video(state):
            if frame == 2:
                predictor.reset_state(state)
    predictor.add_new_points_or_box(state, 0, 1, **CLICK)
    assert len(list(predictor.propagate_in_video(state))) == 20


@pytest.mark.parametrize("frame", [0, 4])
def test_row_24_propagation_returns_the_mask_of_a_correction(
    predictor: Any, state: Any, frame: int
) -> None:
    first = {f: m.clone() for f, _, m in predictor.propagate_in_video(state)}
    clicked = predictor.add_new_points_or_box(state, frame, 1, [[40, 30]], [0])[2]
    second = {f: m.clone() for f, _, m in predictor.propagate_in_video(state, start_frame_idx=0)}
    assert torch.equal(second[frame], clicked) and not torch.equal(first[frame], clicked)
    assert not torch.equal(first[frame + 1], second[frame + 1])
    third = {f: m.clone() for f, _, m in predictor.propagate_in_video(state, start_frame_idx=0)}
    assert torch.equal(third[frame], clicked)


def test_row_25_a_second_object_may_be_prompted_on_a_later_frame(
    predictor: Any, state: Any
) -> None:
    predictor.add_new_points_or_box(state, 8, 2, **CLICK)
    outputs = list(predictor.propagate_in_video(state))
    assert [f for f, _, _ in outputs] == list(range(20))
    assert all(m.dtype == torch.float32 for _, _, m in outputs)


def test_row_26_reverse_from_the_last_frame(predictor: Any, clip: Any) -> None:
    state = predictor.init_state(clip)
    predictor.add_new_points_or_box(state, 10, 1, **CLICK)
    outputs = predictor.propagate_in_video(state, start_frame_idx=19, reverse=True)
    assert [f for f, _, _ in outputs] == list(range(19, -1, -1))


def test_row_27_running_out_of_memory_in_a_click_changes_nothing(
    predictor: Any, state: Any, snapshot: Any, monkeypatch: Any
) -> None:
    def run_out_of_memory(*_: Any) -> None:
        raise torch.OutOfMemoryError("injected")

    before = snapshot(state)
    with monkeypatch.context() as patch:
        patch.setattr(predictor, "track", run_out_of_memory)
        with pytest.raises(torch.OutOfMemoryError):
            predictor.add_new_points_or_box(state, 0, 2, **CLICK)
    assert snapshot(state) == before
    predictor.add_new_points_or_box(state, 0, 2, **CLICK)


def test_row_28_a_frame_is_stored_for_all_objects_or_for_none(
    predictor: Any, state: Any, snapshot: Any, monkeypatch: Any
) -> None:
    predictor.add_new_points_or_box(state, 0, 2, **CLICK)
    monkeypatch.setattr(frame_steps, "OBJECTS_PER_PASS", 1)
    original = predictor.encode_memory
    calls = []

    def run_out_of_memory(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("injected")
        return original(*arguments)

    list(predictor.propagate_in_video(state, max_frame_num_to_track=2))
    before = snapshot(state)
    with monkeypatch.context() as patch:
        patch.setattr(predictor, "encode_memory", run_out_of_memory)
        with pytest.raises(torch.OutOfMemoryError):
            list(predictor.propagate_in_video(state, start_frame_idx=3))
    assert snapshot(state) == before
    assert next(predictor.propagate_in_video(state, start_frame_idx=3))[0] == 3
