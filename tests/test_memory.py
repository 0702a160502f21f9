"""The memory bank: which memories a frame recalls, and which ones are dropped."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sam2_fast.memory import FrameMemory, MemoryBank


def memory_of(frame: int) -> FrameMemory:
    pointer = torch.tensor([float(frame)])
    return FrameMemory(pointer, torch.ones(1), torch.zeros(1, 1), torch.zeros(1, 1, 1))


def bank_of(prompted: list[int], tracked: list[int]) -> MemoryBank:
    return MemoryBank({f: memory_of(f) for f in prompted}, {f: memory_of(f) for f in tracked})


def test_a_frame_recalls_prompted_maps_and_six_recent_ones_in_order() -> None:
    recall = bank_of([0], list(range(1, 20))).recall(20, 1, None)
    assert recall.maps == (0, 14, 15, 16, 17, 18, 19)
    assert recall.rows == (6, 5, 4, 3, 2, 1, 0)


def test_pointers_are_those_of_earlier_prompts_and_of_fifteen_recent_frames() -> None:
    recall = bank_of([0, 30], list(range(1, 25))).recall(25, 1, 100)
    assert recall.pointers == (0, *range(24, 9, -1))
    assert recall.ages == (25, *range(1, 16))
    assert 30 in recall.maps and 30 not in recall.pointers
    assert recall.longest == 15


def test_in_reverse_the_memories_of_later_frames_are_recalled() -> None:
    recall = bank_of([10], [9, 11, 12, 13]).recall(8, -1, 20)
    assert recall.maps == (10, 13, 12, 11, 9)
    assert recall.rows == (6, 4, 3, 2, 0)
    assert recall.pointers == (10, 9, 11, 12, 13)
    assert recall.ages == (2, 1, 3, 4, 5)


@pytest.mark.parametrize(
    ("num_frames", "longest"), [(1, 1), (2, 1), (5, 4), (16, 15), (300, 15), (None, 15)]
)
def test_the_longest_age_is_limited_by_the_clip_and_is_not_zero(
    num_frames: int | None, longest: int
) -> None:
    assert bank_of([0], []).recall(0, 1, num_frames).longest == longest


def test_stride_selects_the_last_frame_and_every_fifth_before_it() -> None:
    recall = bank_of([0], list(range(1, 40))).recall(33, 1, None, stride=5)
    assert recall.maps == (0, 10, 15, 20, 25, 30, 32)


def test_a_limit_of_prompted_maps_selects_the_nearest_on_both_sides() -> None:
    memory = bank_of([0, 5, 12, 30, 40], [])
    recall = memory.recall(13, 1, 50, max_prompted=3)
    assert recall.maps[:3] == (12, 30, 5)
    # A prompted frame that is not among the nearest counts as a recent tracked frame.
    near = bank_of([8, 9, 10, 11], []).recall(12, 1, 50, max_prompted=2)
    assert set(near.maps) == {11, 10, 9, 8} and near.rows[near.maps.index(8)] == 3


@given(st.integers(1, 60), st.sampled_from([1, 2, 3]), st.booleans())
def test_dropping_memories_does_not_change_what_the_next_frames_recall(
    length: int, stride: int, both: bool
) -> None:
    full = bank_of([0], [])
    bounded = bank_of([0], [])
    for frame in range(1, length + 20):
        expected = full.recall(frame, 1, None, stride=stride)
        assert bounded.recall(frame, 1, None, stride=stride) == expected
        for memory in (full, bounded):
            memory.tracked[frame] = memory_of(frame)
        bounded.forget(frame, 1, 6 * stride, 15, both)
    assert len(bounded.tracked) <= 17 * (1 + both)
    maps = sum(m.map is not None for m in bounded.tracked.values())
    assert maps <= (6 * stride + 1) * (1 + both)


def test_a_reverse_pass_from_a_prompt_recalls_the_memories_of_the_forward_pass() -> None:
    full = bank_of([20], [])
    bounded = bank_of([20], [])
    for frame in range(21, 60):
        for memory in (full, bounded):
            memory.tracked[frame] = memory_of(frame)
        bounded.forget(frame, 1, 6, 15, both=True)
    assert full.recall(19, -1, 100) == bounded.recall(19, -1, 100)


def test_prompted_and_corrected_frames_are_settled_and_not_dropped() -> None:
    memory = bank_of([0], list(range(1, 50)))
    memory.tracked[3].corrected = True
    memory.forget(49, 1, 6, 15, both=False)
    assert memory.settled(3) is not None
    assert memory.settled(40) is None
    assert memory.settled(0) is not None


def test_clearing_around_a_prompt_drops_only_tracked_frames_nearby() -> None:
    memory = bank_of([10], list(range(10)) + list(range(11, 30)))
    memory.clear_around(10, 7)
    assert set(memory.tracked) == {0, 1, 2, *range(18, 30)} and 10 in memory.prompted
