"""The simulated annotator: frequencies of prompts and corrections, and impossible settings."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from sam2_fast.training import Annotator, Hands, Plan, correction, draw_plan, first_prompt

COUNT = 4000


@pytest.fixture(scope="module")
def plans() -> list[Plan]:
    rng = np.random.default_rng(42)
    return [draw_plan(rng, 8) for _ in range(COUNT)]


def about(count: int) -> object:
    """Equal up to four standard deviations."""
    return pytest.approx(count, abs=4 * (COUNT * 0.25) ** 0.5)


def test_half_of_the_clips_are_prompted_with_points_and_only_these_are_corrected(
    plans: list[Plan],
) -> None:
    assert sum(plan.points for plan in plans) == about(COUNT // 2)
    assert all(bool(plan.corrected) == plan.points for plan in plans)


def test_frame_0_is_prompted_and_in_half_of_the_clips_one_more(plans: list[Plan]) -> None:
    for plan in plans:
        assert plan.prompted[0] == 0
        assert len(set(plan.prompted)) == len(plan.prompted) <= 2
    second_frames = [plan.prompted[1] for plan in plans if len(plan.prompted) == 2]
    assert len(second_frames) == about(COUNT // 2)
    counts = Counter(second_frames)
    assert set(counts) == set(range(1, 8))
    assert max(counts.values()) < 1.4 * min(counts.values())


def test_all_prompted_frames_are_corrected_and_sometimes_another_one(plans: list[Plan]) -> None:
    with_points = [plan for plan in plans if plan.points]
    for plan in with_points:
        assert set(plan.prompted) <= set(plan.corrected)
        assert len(plan.corrected) <= 2
    counts = Counter((len(plan.prompted), len(plan.corrected)) for plan in with_points)
    assert set(counts) == {(1, 1), (1, 2), (2, 2)}
    assert abs(counts[1, 1] - counts[1, 2]) < 130


def test_prompted_frames_are_computed_first_and_then_the_others_in_order(plans: list[Plan]) -> None:
    for plan in plans:
        assert sorted(plan.order) == list(range(8))
        rest = plan.order[len(plan.prompted) :]
        assert plan.order[: len(plan.prompted)] == plan.prompted and list(rest) == sorted(rest)


def test_an_image_is_always_prompted_with_points_or_a_box() -> None:
    rng = np.random.default_rng(0)
    assert {draw_plan(rng, 1) for _ in range(50)} == {Plan(True, (0,), (0,), (0,))}


def test_the_generator_determines_the_plan() -> None:
    first, second = (draw_plan(np.random.default_rng(7), 8) for _ in range(2))
    assert first == second


def objects() -> torch.Tensor:
    """True masks of two objects: [2, 1, 20, 30] bool."""
    truth = torch.zeros(2, 1, 20, 30, dtype=torch.bool)
    truth[0, 0, 5:10, 5:15] = True
    truth[1, 0, 12:18, 20:28] = True
    return truth


def test_half_of_the_first_prompts_are_boxes_and_half_are_clicks_on_the_object() -> None:
    hands = Hands(np.random.default_rng(0), [0], [0, 0])
    truth = objects()
    boxes = 0
    for _ in range(200):
        points, labels = first_prompt(hands, truth, Annotator())
        if points.shape[1] == 2:
            boxes += 1
            assert labels.tolist() == [[2, 3]] * 2
            assert (points[0, 0] - torch.tensor([5.0, 5.0])).abs().max() <= 1
        else:
            assert labels.tolist() == [[1]] * 2
            assert all(truth[i, 0, int(points[i, 0, 1]), int(points[i, 0, 0])] for i in range(2))
    assert 70 < boxes < 130


def test_corrections_are_clicks_on_errors_and_sometimes_anywhere_on_the_object() -> None:
    hands = Hands(np.random.default_rng(1), [1], [0, 0])
    truth = objects()
    masks = truth.clone()
    masks[0, 0, 5:10, 5:7] = False  # missing pixels
    masks[1, 0, 0:2, 0:2] = True  # wrong pixels
    elsewhere = 0
    for _ in range(300):
        points, labels = correction(hands, truth, masks, Annotator())
        pixels = [(int(points[i, 0, 1]), int(points[i, 0, 0])) for i in range(2)]
        assert all(labels[i, 0] == truth[i, 0][pixels[i]] for i in range(2))
        elsewhere += not bool((truth ^ masks)[1, 0][pixels[1]])
    assert 10 < elsewhere < 60


def test_every_wrong_pixel_is_clicked_with_the_same_probability() -> None:
    hands = Hands(np.random.default_rng(2), [2], [0, 0])
    truth = objects()
    masks = truth.clone()
    masks[0, 0, 5:10, 5:9] = False  # 20 pixels
    annotator = Annotator(anywhere=0.0)
    counts = Counter(
        tuple(correction(hands, truth, masks, annotator)[0][0, 0].tolist()) for _ in range(2000)
    )
    assert set(counts) == {(x, y) for x in range(5, 9) for y in range(5, 10)}
    # 100 clicks each, up to six standard deviations.
    assert min(counts.values()) > 50 and max(counts.values()) < 160


def test_random_values_of_a_clip_do_not_depend_on_other_clips_of_its_batch() -> None:
    alone = Hands(np.random.default_rng(0), [7], [0, 0])
    in_batch = Hands(np.random.default_rng(0), [5, 7, 9], [0, 1, 1, 2])
    for shape in ((1,), (1, 4), (2,)):
        assert torch.equal(alone.uniform(*shape), in_batch.uniform(*shape)[1:3])


def test_a_clip_prompted_with_masks_has_a_frame_without_a_prompt() -> None:
    rng = np.random.default_rng(3)
    plans = [draw_plan(rng, 2) for _ in range(100)]
    assert all(plan.prompted == (0,) for plan in plans if not plan.points)
    assert {plan.prompted for plan in plans if plan.points} == {(0,), (0, 1)}


@pytest.mark.parametrize(
    "change", [{"points": 1.5}, {"prompted_frames": 3}, {"prompted_frames": 0}, {"clicks": -1}]
)
def test_impossible_settings_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Annotator(**change)
    with pytest.raises(ValueError, match="frames: expected 1 or more"):
        draw_plan(np.random.default_rng(0), 0)
