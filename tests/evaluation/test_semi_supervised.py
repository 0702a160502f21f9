"""Semi-supervised evaluation: each object is prompted once, on its first frame, and scored."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import numpy as np
import pytest
import torch

from sam2_fast import build_sam2_video_predictor
from sam2_fast.data import SyntheticVideo, World
from sam2_fast.evaluation import follow, semi_supervised


def square(x: int) -> np.ndarray:
    mask = np.zeros((40, 60), dtype=bool)
    mask[10:30, x : x + 20] = True
    return mask


EMPTY = np.zeros((40, 60), dtype=bool)
TRUTH = [
    {1: square(0), 2: EMPTY},
    {1: square(2), 2: EMPTY},
    {1: square(4), 2: square(30)},
    {1: square(6), 2: square(32)},
    {1: square(8)},
]


def logits_of(masks: dict[int, np.ndarray]) -> torch.Tensor:
    return torch.stack([torch.from_numpy(m.astype(np.float32))[None] - 0.5 for m in masks.values()])


class FrozenPredictor:
    """A predictor that returns the last prompted mask of an object on every later frame.

    After a click that mask is the true one; with fewer than three clicks it is two columns off.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def init_state(self, video: Any) -> dict[int, np.ndarray]:
        self.calls.append(("init", video))
        return {}

    def add_new_mask(
        self, state: dict[int, np.ndarray], frame: int, number: int, mask: np.ndarray
    ) -> None:
        self.calls.append(("mask", frame, number))
        state[number] = mask

    def add_new_points_or_box(
        self, state: dict[int, np.ndarray], frame: int, number: int, **prompt: Any
    ) -> Any:
        if "box" in prompt:
            self.calls.append(("box", frame, number, prompt["box"].tolist()))
        else:
            self.calls.append(("click", frame, number, prompt["labels"].tolist()))
        clicks = sum(call[:3] == ("click", frame, number) for call in self.calls)
        state[number] = np.roll(TRUTH[frame][number], 2 if clicks < 3 else 0, axis=1)
        return frame, list(state), logits_of(state)

    def propagate_in_video(
        self, state: dict[int, np.ndarray], start_frame_idx: int
    ) -> Generator[Any, None, None]:
        for t in range(start_frame_idx, len(TRUTH)):
            yield t, list(state), logits_of(state)


def test_each_object_is_prompted_once_on_its_first_frame_and_tracked_from_there() -> None:
    predictor = FrozenPredictor()
    followed = follow(predictor, "video", TRUTH)
    assert predictor.calls == [("init", "video"), ("mask", 0, 1), ("init", "video"), ("mask", 2, 2)]
    assert [sorted(masks) for masks in followed] == [[1], [1], [1, 2], [1, 2], [1, 2]]
    assert all(np.array_equal(masks[1], square(0)) for masks in followed)
    assert np.array_equal(followed[4][2], square(30))


def test_scores_leave_out_both_ends_and_count_an_object_from_its_first_frame() -> None:
    first, second = semi_supervised(FrozenPredictor(), "video", TRUTH, name="v")
    overlap = [(20 - 2 * t) / (20 + 2 * t) for t in range(5)]
    assert (first.video, first.object, first.frames) == ("v", 1, 3)
    assert first.j == pytest.approx(np.mean(overlap[1:4]))
    assert (second.object, second.frames) == (2, 2)
    assert second.j == pytest.approx(np.mean(overlap[:2]))
    with_ends = semi_supervised(FrozenPredictor(), "video", TRUTH, ends=True)
    assert [row.frames for row in with_ends] == [5, 3]
    assert with_ends[1].j == pytest.approx((1 + 18 / 22 + 0) / 3)


def test_a_box_goes_from_the_first_to_the_last_pixel() -> None:
    predictor = FrozenPredictor()
    follow(predictor, "video", TRUTH, "box")
    assert ("box", 2, 2, [30.0, 10.0, 49.0, 29.0]) in predictor.calls


@pytest.mark.parametrize(("prompt", "clicks"), [("click", 1), ("3 clicks", 3), ("5 clicks", 3)])
def test_clicks_stop_when_nothing_is_wrong(prompt: Any, clicks: int) -> None:
    predictor = FrozenPredictor()
    follow(predictor, "video", TRUTH, prompt)
    first = [call for call in predictor.calls if call[:3] == ("click", 0, 1)]
    assert len(first) == clicks and first[0][3] == [1]


def test_other_prompts_are_refused() -> None:
    with pytest.raises(
        ValueError, match="prompt: expected mask, box, click, 3 clicks, 5 clicks, got 'scribble'"
    ):
        follow(FrozenPredictor(), "video", TRUTH, "scribble")


@pytest.mark.parametrize("prompt", ["mask", "box", "3 clicks"])
def test_our_predictor_on_a_synthetic_video(prompt: Any) -> None:
    clip = SyntheticVideo(0, 5, World(height=64, width=96, objects=(2, 2)))
    predictor = build_sam2_video_predictor("tiny", image_size=64, device="cpu", seed=0)
    rows = semi_supervised(predictor, clip.images(), [frame.masks() for frame in clip], prompt)
    assert [row.object for row in rows] == [1, 2] and all(0 <= row.j <= 1 for row in rows)
