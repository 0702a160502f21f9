"""Losses against the official values on fixed tensors, against hand-computed ones, and where
gradients go.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sam2_fast.training import (
    Losses,
    LossWeights,
    Step,
    clip_losses,
    iou_loss,
    mask_losses,
    require_finite,
    step_losses,
)


def fixed() -> tuple[list[Step], Tensor]:
    """Two steps, of three masks and of one, for three objects of which the second is absent; made
    of sines, in float64.
    """
    steps = []
    for k, masks in enumerate((3, 1)):
        pixels = torch.arange(3 * masks * 35, dtype=torch.float64).view(3, masks, 5, 7)
        numbers = torch.arange(3 * masks, dtype=torch.float64).view(3, masks)
        presence = 2 * torch.sin(torch.arange(3, dtype=torch.float64).view(3, 1) + k)
        steps.append(
            Step(4 * torch.sin(1.7 * pixels + k), torch.sigmoid(torch.cos(numbers + k)), presence)
        )
    truth = torch.sin(0.9 * torch.arange(105, dtype=torch.float64).view(3, 5, 7)) > 0.2
    truth[1] = False
    return steps, truth


def test_the_values_of_the_official_code() -> None:
    """Two frames; the second has half the logits and the opposite truth. Computed by
    `MultiStepMultiMasksAndIous` in float64.
    """
    steps, truth = fixed()
    second = [step._replace(logits=step.logits * 0.5) for step in steps]
    found = clip_losses([steps, second], torch.stack([truth, ~truth]), num_objects=3)
    official = (
        1.1506444877793678,
        1.4388029317888593,
        0.6795296792551677,
        2.431646000222782,
        27.56286836685416,
    )
    assert [
        x.item() for x in (found.mask, found.dice, found.iou, found.presence, found.total)
    ] == pytest.approx(official, rel=1e-12)


def test_two_pixels_by_hand() -> None:
    logits, truth = torch.tensor([[[[0.0, 2.0]]]]).double(), torch.tensor([[[True, False]]])
    wrong = 1 / (1 + math.exp(-2.0))
    first, second = 0.25 * 0.5**2 * math.log(2), 0.75 * wrong**2 * -math.log(1 - wrong)
    found = mask_losses(logits, truth)
    assert found.focal.item() == pytest.approx((first + second) / 2)
    assert found.dice.item() == pytest.approx(1 - (2 * 0.5 + 1) / (0.5 + wrong + 1 + 1))
    assert found.even.item() == pytest.approx((math.log(2) - math.log(1 - wrong)) / 2)
    # Nothing of it is found: IoU 0.
    assert iou_loss(logits, truth[:, None], torch.tensor([[0.3]]).double()).item() == pytest.approx(
        0.3
    )


def test_only_the_best_of_three_masks_is_corrected_and_every_predicted_iou() -> None:
    truth = torch.zeros(1, 4, 4, dtype=torch.bool)
    truth[0, :2] = True
    right = torch.where(truth, 1.0, -1.0)[0]
    logits = torch.stack([-right, right, torch.zeros(4, 4)])[None].requires_grad_()
    iou = torch.tensor([[0.1, 0.2, 0.3]], requires_grad=True)
    step_losses(Step(logits, iou, torch.zeros(1, 1)), truth, 1).total.backward()
    assert logits.grad is not None and iou.grad is not None
    assert [bool(logits.grad[0, m].any()) for m in range(3)] == [False, True, False] and (
        iou.grad != 0
    ).all()


def test_of_an_absent_object_only_the_presence_counts() -> None:
    steps, _ = fixed()
    found = step_losses(steps[0], torch.zeros(3, 5, 7, dtype=torch.bool), 3)
    assert (
        found.mask == found.dice == found.iou == 0
        and found.presence > 0
        and found.total == found.presence
    )


def test_weights_and_the_number_of_objects_scale() -> None:
    steps, truth = fixed()
    one, other = step_losses(steps[0], truth, 3), step_losses(steps[0], truth, 6)
    assert [a.item() / 2 for a in one] == pytest.approx([b.item() for b in other])
    mask_only = step_losses(
        steps[1], truth, 3, LossWeights(mask=2.0, dice=0.0, iou=0.0, presence=0.0)
    )
    assert mask_only.total.item() == pytest.approx(2 * mask_only.mask.item())


def test_large_logits_stay_finite() -> None:
    logits = torch.tensor([[[[1e4, -1e4], [1e4, -1e4]]]], requires_grad=True)
    found = mask_losses(logits, torch.tensor([[[False, True], [True, False]]]))
    loss = found.focal.sum() + found.dice.sum() + found.even.sum()
    loss.backward()
    assert torch.isfinite(loss) and logits.grad is not None and torch.isfinite(logits.grad).all()


def test_a_loss_that_is_not_finite_stops_training_by_name() -> None:
    fine = torch.tensor(1.0)
    require_finite(Losses(fine, fine, fine, fine, fine, fine), "step 7")
    with pytest.raises(
        FloatingPointError, match=r"step 7: dice, total loss is not finite; lower the learning rate"
    ):
        require_finite(Losses(fine, fine * torch.nan, fine, fine, fine, fine * torch.inf), "step 7")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s, t: (s._replace(iou=s.iou[:, :1]), t, 3), "iou, presence: expected"),
        (lambda s, t: (s, t[:, 1:], 3), "truth: expected"),
        (lambda s, t: (s, t, 0), "num_objects: expected 1 or more"),
    ],
)
def test_what_does_not_fit_is_named(
    change: Callable[[Step, Tensor], tuple[Step, Tensor, float]], words: str
) -> None:
    steps, truth = fixed()
    with pytest.raises(ValueError, match=words):
        step_losses(*change(steps[0], truth))
    with pytest.raises(ValueError, match="frames: expected steps for 1 frames"):
        clip_losses([], truth[None], 3)
