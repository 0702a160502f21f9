"""The simulated annotator: how often what is drawn, and what can never be."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from sam2_fast.training import Annotator, Hands, Plan, correction, draw_plan, first_prompt

MANY = 4000


@pytest.fixture(scope="module")
def plans() -> list[Plan]:
    rng = np.random.default_rng(42)
    return [draw_plan(rng, 8) for _ in range(MANY)]


def share(count: int) -> object:
    return pytest.approx(count, abs=4 * (MANY * 0.25) ** 0.5)  # four standard deviations


def test_half_of_the_clips_are_prompted_with_points_and_only_they_are_corrected(
    plans: list[Plan],
) -> None:
    assert sum(plan.points for plan in plans) == share(MANY // 2)
    assert all(bool(plan.corrected) == plan.points for plan in plans)


def test_one_or_two_frames_are_prompted_of_which_frame_0_is_the_first(plans: list[Plan]) -> None:
    assert all(
        plan.prompted[0] == 0 and len(set(plan.prompted)) == len(plan.prompted) <= 2
        for plan in plans
    )
    two = [plan.prompted[1] for plan in plans if len(plan.prompted) == 2]
    assert len(two) == share(MANY // 2) and set(two) == set(range(1, 8))
    assert max(Counter(two).values()) < 1.4 * min(Counter(two).values())


def test_prompted_frames_are_corrected_and_perhaps_one_more(plans: list[Plan]) -> None:
    with_points = [plan for plan in plans if plan.points]
    assert all(
        set(plan.prompted) <= set(plan.corrected) and len(plan.corrected) <= 2
        for plan in with_points
    )
    kinds = Counter((len(plan.prompted), len(plan.corrected)) for plan in with_points)
    assert set(kinds) == {(1, 1), (1, 2), (2, 2)} and abs(kinds[1, 1] - kinds[1, 2]) < 130


def test_every_frame_is_computed_once_prompted_ones_first_then_forwards(plans: list[Plan]) -> None:
    for plan in plans:
        assert sorted(plan.order) == list(range(8))
        rest = plan.order[len(plan.prompted) :]
        assert plan.order[: len(plan.prompted)] == plan.prompted and list(rest) == sorted(rest)


def test_an_image_is_always_clicked_or_boxed() -> None:
    rng = np.random.default_rng(0)
    assert {draw_plan(rng, 1) for _ in range(50)} == {Plan(True, (0,), (0,), (0,))}


def test_the_same_generator_gives_the_same_plans() -> None:
    assert [draw_plan(np.random.default_rng(7), 8) for _ in range(3)] == [
        draw_plan(np.random.default_rng(7), 8)
    ] * 3


def objects() -> torch.Tensor:
    truth = torch.zeros(2, 1, 20, 30, dtype=torch.bool)
    truth[0, 0, 5:10, 5:15], truth[1, 0, 12:18, 20:28] = True, True
    return truth


def test_first_prompts_are_boxes_and_clicks_on_the_object_half_and_half() -> None:
    hands, truth, boxes = Hands(np.random.default_rng(0), [0], [0, 0]), objects(), 0
    for _ in range(200):
        points, labels = first_prompt(hands, truth, Annotator())
        if points.shape[1] == 2:
            boxes += 1
            assert (
                labels.tolist() == [[2, 3]] * 2
                and (points[0, 0] - torch.tensor([5.0, 5.0])).abs().max() <= 1
            )
        else:
            assert labels.tolist() == [[1]] * 2
            assert all(truth[i, 0, int(points[i, 0, 1]), int(points[i, 0, 0])] for i in range(2))
    assert 70 < boxes < 130


def test_corrections_lie_where_the_mask_is_wrong_or_now_and_then_anywhere_on_the_object() -> None:
    hands, truth = Hands(np.random.default_rng(1), [1], [0, 0]), objects()
    found = truth.clone()
    found[0, 0, 5:10, 5:7] = False  # missed
    found[1, 0, 0:2, 0:2] = True  # too much
    elsewhere = 0
    for _ in range(300):
        points, labels = correction(hands, truth, found, Annotator())
        place = [(int(points[i, 0, 1]), int(points[i, 0, 0])) for i in range(2)]
        wrong = [bool((truth ^ found)[i, 0][place[i]]) for i in range(2)]
        assert all(labels[i, 0] == truth[i, 0][place[i]] for i in range(2))
        elsewhere += not wrong[1]
    assert 10 < elsewhere < 60


def test_clicks_fall_on_every_wrong_pixel_alike() -> None:
    hands, truth = Hands(np.random.default_rng(2), [2], [0, 0]), objects()
    found = truth.clone()
    found[0, 0, 5:10, 5:9] = False  # 20 pixels
    counts = Counter(
        tuple(correction(hands, truth, found, Annotator(anywhere=0.0))[0][0, 0].tolist())
        for _ in range(2000)
    )
    assert set(counts) == {(x, y) for x in range(5, 9) for y in range(5, 10)}
    # 100 each, six standard deviations.
    assert min(counts.values()) > 50 and max(counts.values()) < 160


def test_places_of_a_clip_do_not_depend_on_its_company() -> None:
    alone = Hands(np.random.default_rng(0), [7], [0, 0])
    among = Hands(np.random.default_rng(0), [5, 7, 9], [0, 1, 1, 2])
    for shape in ((1,), (1, 4), (2,)):
        assert torch.equal(alone.uniform(*shape), among.uniform(*shape)[1:3])


def test_of_a_clip_prompted_with_masks_a_frame_is_left_to_learn_from() -> None:
    rng = np.random.default_rng(3)
    plans = [draw_plan(rng, 2) for _ in range(100)]
    assert all(plan.prompted == (0,) for plan in plans if not plan.points)
    assert {plan.prompted for plan in plans if plan.points} == {(0,), (0, 1)}


@pytest.mark.parametrize(
    "change", [{"points": 1.5}, {"prompted_frames": 3}, {"prompted_frames": 0}, {"clicks": -1}]
)
def test_habits_that_cannot_be_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Annotator(**change)
    with pytest.raises(ValueError, match="frames: expected 1 or more"):
        draw_plan(np.random.default_rng(0), 0)
