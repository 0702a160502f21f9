"""Simulated users: which frames and points they click, what is scored, and how long it takes."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import numpy as np
import pytest
import torch

from sam2_fast import SAM2ImagePredictor, build_sam2, build_sam2_video_predictor
from sam2_fast.evaluation import (
    image_clicks,
    mean_j_and_f,
    offline,
    offline_seconds,
    online,
    online_seconds,
)

HEIGHT, WIDTH = 40, 60
LENGTH = 10


def square(x: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[10:30, x : x + 20] = True
    return mask


class ScriptedPredictor:
    """A predictor that returns on each frame the mask of the last prompted frame before it.

    That mask is the true one after `needed_clicks` clicks on its frame; before that, it is shifted
    by one column a click that is missing.
    """

    def __init__(self, truth: list[np.ndarray], needed_clicks: int = 3) -> None:
        self.truth = truth
        self.needed_clicks = needed_clicks
        self.clicks: dict[int, list[tuple[tuple[float, float], int]]] = {}
        self.passes: list[int] = []

    def init_state(self, video: Any) -> dict[str, Any]:
        self.clicks = {}
        return {"video": video}

    def add_new_points_or_box(
        self,
        state: Any,
        frame_idx: int,
        obj_id: int,
        *,
        points: Any,
        labels: Any,
        clear_old_points: bool,
    ) -> tuple[int, list[int], torch.Tensor]:
        assert not clear_old_points and points.shape == (1, 2) and labels.shape == (1,)
        self.clicks.setdefault(frame_idx, []).append(
            ((float(points[0, 0]), float(points[0, 1])), int(labels[0]))
        )
        return frame_idx, [obj_id], self.logits(frame_idx)

    def mask_after_clicks(self, frame: int) -> np.ndarray:
        missing_clicks = self.needed_clicks - len(self.clicks[frame])
        return np.roll(self.truth[frame], max(missing_clicks, 0), axis=1)

    def logits(self, frame: int) -> torch.Tensor:
        last = max(t for t in self.clicks if t <= frame)
        return torch.from_numpy(self.mask_after_clicks(last).astype(np.float32))[None, None] - 0.5

    def propagate_in_video(
        self, state: Any, start_frame_idx: int | None = None
    ) -> Generator[Any, None, None]:
        assert start_frame_idx is not None
        self.passes.append(start_frame_idx)
        for t in range(start_frame_idx, len(self.truth)):
            yield t, [1], self.logits(t)


def moving_object() -> list[np.ndarray]:
    """An object that appears on frame 2 and moves two columns a frame."""
    return [
        square(2 * t) if t >= 2 else np.zeros((HEIGHT, WIDTH), dtype=bool) for t in range(LENGTH)
    ]


def test_the_first_click_is_the_centre_and_later_ones_are_in_the_largest_error() -> None:
    predictor = ScriptedPredictor(moving_object())
    offline(predictor, "video", moving_object(), prompted_frames=1)
    clicks = predictor.clicks[2]
    assert len(clicks) == 3 and clicks[0][1] == 1
    # After one click the mask is two columns to the right of the object: the two wrong strips
    # have equal depth, and a tie results in a negative click.
    (x, y), label = clicks[1]
    assert label == 0 and x in (24.0, 25.0) and 10 <= y < 30
    assert list(predictor.clicks) == [2], "the first prompt is on the object's first frame"


def test_offline_corrects_the_worst_frame_and_tracks_everything_again() -> None:
    truth = moving_object()
    predictor = ScriptedPredictor(truth)
    rounds = offline(predictor, "video", truth, prompted_frames=4)
    # After a prompt on frame 2 the last frame is the worst one, then the last unprompted one.
    assert rounds[-1].prompted == [2, 9, 8, 7] and [r.clicks for r in rounds] == [3, 6, 9, 12]
    assert predictor.passes == [2, 2, 2, 2]
    overlap = [(20 - 2 * t) / (20 + 2 * t) for t in range(8)]
    assert rounds[0].j == pytest.approx(np.mean(overlap))
    assert rounds[1].j == pytest.approx((sum(overlap[:7]) + 1) / 8)
    assert rounds[0].j < rounds[1].j < rounds[2].j < rounds[3].j


def test_offline_stops_clicking_when_nothing_is_wrong() -> None:
    still = [square(10)] * LENGTH
    predictor = ScriptedPredictor(still, needed_clicks=1)
    rounds = offline(predictor, "video", still, prompted_frames=8)
    assert len(rounds) == 8
    assert {(r.clicks, r.j, r.f) for r in rounds} == {(1, 1.0, 1.0)}
    assert mean_j_and_f(rounds) == 1.0


def test_a_frame_may_be_chosen_twice_and_its_clicks_add_up() -> None:
    truth = [square(10), square(10)]
    predictor = ScriptedPredictor(truth, needed_clicks=5)
    rounds = offline(predictor, "video", truth, prompted_frames=2)
    # Both frames are equally bad, so the earlier one is chosen again; then nothing is wrong.
    assert rounds[1].prompted == [0, 0] and len(predictor.clicks[0]) == 5


def test_online_corrects_the_first_frame_below_the_threshold_and_keeps_earlier_frames() -> None:
    truth = moving_object()
    predictor = ScriptedPredictor(truth)
    rounds = online(predictor, "video", truth, prompted_frames=3, threshold=0.75)
    # A mask that is two columns off has an IoU of 18 / 22, one that is four columns off has
    # 16 / 24, which is below the threshold: frame 4 is corrected, and then frame 6.
    assert [r.prompted for r in rounds] == [[2], [2, 4], [2, 4, 6]]
    ious = [1, 18 / 22, 1, 18 / 22, 1, 18 / 22, 16 / 24, 14 / 26]
    assert rounds[2].j == pytest.approx(np.mean(ious))
    assert predictor.passes == [2, 2, 4, 2, 4, 6]


def test_online_repeats_the_score_if_nothing_is_wrong() -> None:
    still = [square(10)] * LENGTH
    rounds = online(ScriptedPredictor(still), "video", still, prompted_frames=8)
    assert len(rounds) == 8 and {len(r.prompted) for r in rounds} == {1}


def test_an_empty_frame_with_a_mask_is_corrected_with_negative_clicks() -> None:
    truth = [square(10), square(10), np.zeros((HEIGHT, WIDTH), dtype=bool)]
    predictor = ScriptedPredictor(truth)
    rounds = offline(predictor, "video", truth, prompted_frames=2)
    assert rounds[1].prompted == [0, 2]
    assert {label for _, label in predictor.clicks[2]} == {0}
    assert rounds[1].j == 1.0


def test_a_video_without_the_object_is_refused() -> None:
    nothing = [np.zeros((HEIGHT, WIDTH), dtype=bool)] * 3
    with pytest.raises(ValueError, match="expected the object on some frame"):
        offline(ScriptedPredictor(nothing), "video", nothing)


def test_the_time_model_of_the_paper() -> None:
    assert offline_seconds(300, 2, 3) == pytest.approx((30 + 1 + 4.5) * 2)
    assert online_seconds(300, 2, 3) == pytest.approx(30 + (1 + 4.5) * 2)


@pytest.mark.parametrize("protocol", [offline, online])
def test_protocols_run_with_our_predictor(protocol: Any) -> None:
    predictor = build_sam2_video_predictor("tiny", image_size=128, device="cpu", seed=0)
    truth = [square(2 * t) for t in range(4)]
    frames = [
        np.where(mask[..., None], 220, 30).repeat(3, axis=2).astype(np.uint8) for mask in truth
    ]
    rounds = protocol(predictor, frames, truth, prompted_frames=2)
    assert len(rounds) == 2
    assert all(0 <= r.j <= 1 and 0 <= r.f <= 1 for r in rounds)
    assert rounds[1].clicks == 6


class ScriptedImagePredictor:
    """An image predictor that returns three masks, or one that is correct from three clicks on.

    Of the three masks the second has the highest predicted IoU.
    """

    def __init__(self, truth: np.ndarray) -> None:
        self.truth = truth
        self.calls: list[tuple[int, bool, bool]] = []

    def set_image(self, image: Any) -> None:
        self.calls = []

    def predict(
        self,
        points: Any,
        labels: Any,
        *,
        mask_input: Any,
        multimask_output: bool,
        return_logits: bool,
    ) -> Any:
        self.calls.append((len(points), mask_input is not None, multimask_output))
        shifts = (0, 4, 8) if multimask_output else (3 - min(len(points), 3),)
        count = len(shifts)
        masks = np.stack([np.roll(self.truth, shift, axis=1) for shift in shifts])
        return masks, np.array([0.2, 0.9, 0.1])[:count], np.zeros((count, 8, 8), dtype=np.float32)


def test_image_clicks_use_the_mask_of_highest_predicted_iou_then_single_masks_with_hints() -> None:
    truth = square(10)
    predictor = ScriptedImagePredictor(truth)
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    ious = image_clicks(predictor, image, [truth], clicks=(1, 2, 3, 5))
    assert ious[0] == pytest.approx([16 / 24, 19 / 21, 1.0, 1.0])
    assert predictor.calls == [(1, False, True), (2, True, False), (3, True, False)]


def test_image_clicks_with_our_predictor() -> None:
    predictor = SAM2ImagePredictor(build_sam2("tiny", image_size=128, device="cpu", seed=0))
    image = np.where(square(10)[..., None], 220, 30).repeat(3, axis=2).astype(np.uint8)
    ious = image_clicks(predictor, image, [square(10), square(30)])
    assert ious.shape == (2, 3) and ((ious >= 0) & (ious <= 1)).all()
    with pytest.raises(ValueError, match="got an empty mask at 0"):
        image_clicks(predictor, image, [np.zeros((HEIGHT, WIDTH), dtype=bool)])
