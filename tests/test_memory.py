"""The memory bank: which frames are recalled, and what may be forgotten."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sam2_fast.memory import MemoryBank
from sam2_fast.types import FrameMemory


def remembered(value: int = 0) -> FrameMemory:
    return FrameMemory(
        torch.tensor([float(value)]), torch.ones(1), torch.zeros(1, 1), torch.zeros(1, 1, 1)
    )


def bank(prompted: list[int], tracked: list[int]) -> MemoryBank:
    return MemoryBank({f: remembered(f) for f in prompted}, {f: remembered(f) for f in tracked})


def test_a_frame_recalls_the_prompt_then_six_maps_from_old_to_new() -> None:
    recall = bank([0], list(range(1, 20))).recall(20, 1, None)
    assert recall.maps == (0, 14, 15, 16, 17, 18, 19)
    assert recall.rows == (6, 5, 4, 3, 2, 1, 0)


def test_pointers_come_from_passed_prompts_and_fifteen_recent_frames() -> None:
    recall = bank([0, 30], list(range(1, 25))).recall(25, 1, 100)
    assert recall.pointers == (0, *range(24, 9, -1))
    assert recall.ages == (25, *range(1, 16))
    assert 30 in recall.maps and 30 not in recall.pointers
    assert recall.longest == 15


def test_reverse_recalls_what_lies_ahead_in_time() -> None:
    recall = bank([10], [9, 11, 12, 13]).recall(8, -1, 20)
    assert recall.maps == (10, 13, 12, 11, 9)
    assert recall.rows == (6, 4, 3, 2, 0)
    assert recall.pointers == (10, 9, 11, 12, 13)
    assert recall.ages == (2, 1, 3, 4, 5)


@pytest.mark.parametrize(
    ("num_frames", "longest"), [(1, 1), (2, 1), (5, 4), (16, 15), (300, 15), (None, 15)]
)
def test_the_longest_age_is_capped_by_a_short_clip_and_never_zero(
    num_frames: int | None, longest: int
) -> None:
    assert bank([0], []).recall(0, 1, num_frames).longest == longest


def test_stride_takes_the_last_frame_and_every_rth_before_it() -> None:
    recall = bank([0], list(range(1, 40))).recall(33, 1, None, stride=5)
    assert recall.maps == (0, 10, 15, 20, 25, 30, 32)


def test_a_limit_on_prompted_maps_keeps_the_nearest_on_both_sides() -> None:
    memory = bank([0, 5, 12, 30, 40], [])
    recall = memory.recall(13, 1, 50, max_prompted=3)
    assert recall.maps[:3] == (12, 30, 5)
    # a prompted frame that is not among the nearest still counts as a recent tracked one
    near = bank([8, 9, 10, 11], []).recall(12, 1, 50, max_prompted=2)
    assert set(near.maps) == {11, 10, 9, 8} and near.rows[near.maps.index(8)] == 3


@given(st.integers(1, 60), st.sampled_from([1, 2, 3]), st.booleans())
def test_forgetting_never_changes_what_the_next_frames_recall(
    length: int, stride: int, both: bool
) -> None:
    full, small = bank([0], []), bank([0], [])
    for now in range(1, length + 20):
        assert full.recall(now, 1, None, stride=stride) == small.recall(now, 1, None, stride=stride)
        for memory in (full, small):
            memory.tracked[now] = remembered(now)
        small.forget(now, 1, 6 * stride, 15, both)
    assert len(small.tracked) <= 17 * (1 + both)
    assert sum(m.map is not None for m in small.tracked.values()) <= (6 * stride + 1) * (1 + both)


def test_a_reverse_pass_from_a_prompt_still_finds_what_the_forward_pass_wrote() -> None:
    full, small = bank([20], []), bank([20], [])
    for now in range(21, 60):
        for memory in (full, small):
            memory.tracked[now] = remembered(now)
        small.forget(now, 1, 6, 15, both=True)
    assert full.recall(19, -1, 100) == small.recall(19, -1, 100)


def test_corrected_frames_are_kept_and_settled() -> None:
    memory = bank([0], list(range(1, 50)))
    memory.corrected.add(3)
    memory.forget(49, 1, 6, 15, both=False)
    assert (
        memory.settled(3) is not None
        and memory.settled(40) is None
        and memory.settled(0) is not None
    )


def test_clearing_around_an_input_drops_tracked_neighbours_only() -> None:
    memory = bank([10], list(range(10)) + list(range(11, 30)))
    memory.clear_around(10, 7)
    assert set(memory.tracked) == {0, 1, 2, *range(18, 30)} and 10 in memory.prompted
