"""Arguments of calls on sessions: ids, buffers of the caller, copies, frames that are gone."""

from __future__ import annotations

import copy
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from tests.reliability.session_calls import CLICK, CLIP, clicked, propagated, same, stream, tracked
from tests.reliability.session_state import state_of
from tests.video.conftest import small_predictor


@pytest.fixture(scope="module")
def predictor() -> Any:
    return small_predictor()


@pytest.mark.reliability("F19")
@pytest.mark.parametrize("value", [torch.tensor(7), np.array(7), np.int64(7), torch.tensor([7])])
def test_equal_integers_of_any_type_are_one_object(predictor: Any, value: Any) -> None:
    session = clicked(predictor)
    for _ in range(2):
        predictor.add_new_points_or_box(session, 0, value, **CLICK)
    predictor.add_new_mask(session, 1, 7, CLIP[0, ..., 0] > 140)
    assert session.obj_ids == [1, "b", 7]
    predictor.clear_all_prompts_in_frame(session, 1, value)
    assert [i for i, _ in predictor.frame_masks(session, 0, [value])] == [7]
    predictor.remove_object(session, value, strict=True)
    assert session.obj_ids == [1, "b"]


@pytest.mark.reliability("F19")
@pytest.mark.parametrize(
    ("value", "error", "shown"),
    [
        (None, TypeError, "got None"),
        (float("nan"), ValueError, "got nan, which does not equal itself"),
        ([1], TypeError, "got list"),
        ({"a": 1}, TypeError, "got dict"),
        (([1],), TypeError, "got tuple"),
        (np.array([1, 2]), TypeError, r"got ndarray of shape \(2,\)"),
        (torch.tensor(1.5), TypeError, "got Tensor of shape"),
        (torch.empty((), device="meta", dtype=torch.int64), TypeError, "got Tensor"),
    ],
)
def test_ids_that_cannot_name_an_object_are_refused(
    predictor: Any, value: Any, error: type[Exception], shown: str
) -> None:
    session = clicked(predictor)
    before = state_of(session)
    calls = [
        lambda: predictor.add_new_points_or_box(session, 0, value, **CLICK),
        lambda: predictor.add_new_mask(session, 0, value, CLIP[0, ..., 0] > 140),
        lambda: predictor.clear_all_prompts_in_frame(session, 0, value),
        lambda: predictor.remove_object(session, value),
        lambda: predictor.frame_masks(session, 0, [value]),
    ]
    for call in calls:
        with pytest.raises(error, match=f"^obj_ids?: expected an integer, .*{shown}"):
            call()
    assert state_of(session) == before


@pytest.mark.reliability("F19")
def test_a_shallow_copy_of_a_session_is_independent(predictor: Any) -> None:
    session = clicked(predictor)
    before = state_of(session)
    copied = copy.copy(session)
    assert type(copied) is type(session)
    outputs = propagated(predictor, copied, 0, 3)
    assert state_of(session) == before
    assert same(outputs, propagated(predictor, session, 0, 3))
    streamed = stream(predictor)
    other = copy.copy(streamed)
    predictor.step(other, CLIP[5])
    assert streamed.frames.pushed == 4 and other.frames.pushed == 5


@pytest.mark.reliability("F14")
@pytest.mark.parametrize("start", [None, 0, 3])
def test_a_pass_from_a_frame_that_is_gone_raises(predictor: Any, start: int | None) -> None:
    session = stream(predictor)
    for frame in (*CLIP, *CLIP[:4]):
        predictor.step(session, frame)
    before = state_of(session)
    with pytest.raises(IndexError, match="is not stored any more"):
        list(predictor.propagate_in_video(session, start))
    assert state_of(session) == before
    frames = [f for f, _, _ in predictor.propagate_in_video(session, session.frames.pushed - 2)]
    assert frames == [16, 17]


@pytest.mark.reliability("F13")
def test_a_pass_does_not_fix_the_start_method_of_processes() -> None:
    code = """
import io, multiprocessing, sys, threading
from tests.reliability.session_calls import clicked
from tests.video.conftest import small_predictor
predictor = small_predictor()
session = clicked(predictor)
list(predictor.propagate_in_video(session, 0, 1))
sys.stderr = io.StringIO()
list(predictor.propagate_in_video(session, 0, 1, progress=True))
assert "propagate in video" in sys.stderr.getvalue()
assert multiprocessing.get_start_method(allow_none=True) is None
multiprocessing.set_start_method("spawn")
assert [t.name for t in threading.enumerate()] == ["MainThread"], threading.enumerate()
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=False
    )
    assert result.returncode == 0, result.stderr


# buffers of the caller


@pytest.mark.reliability("buffers")
def test_a_stream_keeps_pixels_of_its_own(predictor: Any) -> None:
    buffer, session, expected = CLIP[0].copy(), predictor.init_state(None), stream(predictor)
    tensor = torch.from_numpy(CLIP[1].copy()).permute(2, 0, 1)
    predictor.step(session, buffer)
    buffer[:] = 0
    predictor.add_new_points_or_box(session, 0, 1, **CLICK)
    predictor.step(session, tensor)
    tensor.zero_()
    for frame in CLIP[2:4]:
        buffer[:] = frame
        predictor.step(session, buffer)
    click = {"points": [[30.0, 15.0]], "labels": [1]}
    for frame in (1, 3):
        outputs = [
            predictor.add_new_points_or_box(s, frame, 1, **click) for s in (session, expected)
        ]
        assert same(*outputs)


@pytest.mark.reliability("buffers")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.uint8, torch.float64])
def test_prompts_are_copied(predictor: Any, dtype: torch.dtype) -> None:
    drawn = torch.zeros(64, 64)
    drawn[10:30, 10:40] = 1.0
    if dtype.is_floating_point:
        drawn[10, 10] = 0.7  # soft, so that it is used as it is
    points, labels = torch.tensor([[0.3, 0.4]]), torch.tensor([1], dtype=torch.int32)
    mask = drawn.to(dtype)
    session, expected = clicked(predictor), clicked(predictor)
    predictor.add_new_mask(session, 0, 2, mask)
    predictor.add_new_points_or_box(session, 0, 3, points, labels, normalize_coords=False)
    predictor.add_new_mask(expected, 0, 2, mask.clone())
    predictor.add_new_points_or_box(
        expected, 0, 3, points.clone(), labels.clone(), normalize_coords=False
    )
    for caller in (mask, points, labels):
        caller.zero_()
    assert state_of(session)["frozen"] == state_of(expected)["frozen"]


@pytest.mark.reliability("buffers")
def test_returned_masks_are_not_parts_of_the_session(predictor: Any) -> None:
    side = 256 * 64 // 1024
    clip = np.ascontiguousarray(CLIP[:, :side, :side])  # masks already have the size of the video
    session = predictor.init_state(clip)
    outputs = [predictor.add_new_points_or_box(session, 0, 1, [[5.0, 5.0]], [1])[2]]
    outputs += [m for _, _, m in propagated_raw(predictor, session)]
    before = state_of(session)
    with torch.inference_mode():
        for masks in outputs:
            masks.zero_()
    assert state_of(session) == before


def propagated_raw(predictor: Any, session: Any) -> list[Any]:
    return [*predictor.propagate_in_video(session, 0, 2)]


@pytest.mark.reliability("20")
def test_a_cleared_object_is_absent_and_others_go_on(predictor: Any) -> None:
    session = tracked(predictor)
    predictor.clear_all_prompts_in_frame(session, 0, 1)
    masks = propagated(predictor, session, 0, 3)
    assert all((m[0] <= 0).all() for _, _, m in masks) and any((m[1] > 0).any() for *_, m in masks)
