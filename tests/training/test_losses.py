"""Losses compared with the official and with hand-computed values, and their gradients."""

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


def fixed_steps() -> tuple[list[Step], Tensor]:
    """Two steps for three objects, with three masks and one mask, and the true masks.

    The second object is absent. Values are computed from sines in float64.
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


def test_losses_equal_those_of_the_official_code() -> None:
    """Computed by the official `MultiStepMultiMasksAndIous` in float64.

    Of two frames, the second has half the logits and the inverted truth of the first.
    """
    steps, truth = fixed_steps()
    second = [step._replace(logits=step.logits * 0.5) for step in steps]
    losses = clip_losses([steps, second], torch.stack([truth, ~truth]), num_objects=3)
    official = {
        "mask": 1.1506444877793678,
        "dice": 1.4388029317888593,
        "iou": 0.6795296792551677,
        "presence": 2.431646000222782,
        "total": 27.56286836685416,
    }
    for name, value in official.items():
        assert getattr(losses, name).item() == pytest.approx(value, rel=1e-12), name


def test_hand_computed_losses_of_two_pixels() -> None:
    logits = torch.tensor([[[[0.0, 2.0]]]]).double()
    truth = torch.tensor([[[True, False]]])
    wrong = 1 / (1 + math.exp(-2.0))
    first = 0.25 * 0.5**2 * math.log(2)
    second = 0.75 * wrong**2 * -math.log(1 - wrong)
    losses = mask_losses(logits, truth)
    assert losses.focal.item() == pytest.approx((first + second) / 2)
    assert losses.dice.item() == pytest.approx(1 - (2 * 0.5 + 1) / (0.5 + wrong + 1 + 1))
    assert losses.even.item() == pytest.approx((math.log(2) - math.log(1 - wrong)) / 2)
    # The masks do not overlap, so that the true IoU is 0.
    predicted_iou = torch.tensor([[0.3]]).double()
    assert iou_loss(logits, truth[:, None], predicted_iou).item() == pytest.approx(0.3)


def test_only_the_best_of_three_masks_and_every_predicted_iou_have_gradients() -> None:
    truth = torch.zeros(1, 4, 4, dtype=torch.bool)
    truth[0, :2] = True
    correct = torch.where(truth, 1.0, -1.0)[0]
    logits = torch.stack([-correct, correct, torch.zeros(4, 4)])[None].requires_grad_()
    iou = torch.tensor([[0.1, 0.2, 0.3]], requires_grad=True)
    step_losses(Step(logits, iou, torch.zeros(1, 1)), truth, 1).total.backward()
    assert logits.grad is not None and iou.grad is not None
    assert [bool(logits.grad[0, m].any()) for m in range(3)] == [False, True, False]
    assert (iou.grad != 0).all()


def test_absent_objects_only_have_a_presence_loss() -> None:
    steps, _ = fixed_steps()
    losses = step_losses(steps[0], torch.zeros(3, 5, 7, dtype=torch.bool), 3)
    assert losses.mask == losses.dice == losses.iou == 0
    assert losses.presence > 0
    assert losses.total == losses.presence


def test_losses_are_scaled_by_weights_and_the_number_of_objects() -> None:
    steps, truth = fixed_steps()
    three_objects = step_losses(steps[0], truth, 3)
    six_objects = step_losses(steps[0], truth, 6)
    assert [a.item() / 2 for a in three_objects] == pytest.approx([b.item() for b in six_objects])
    weights = LossWeights(mask=2.0, dice=0.0, iou=0.0, presence=0.0)
    mask_only = step_losses(steps[1], truth, 3, weights)
    assert mask_only.total.item() == pytest.approx(2 * mask_only.mask.item())


def test_losses_of_large_logits_are_finite() -> None:
    logits = torch.tensor([[[[1e4, -1e4], [1e4, -1e4]]]], requires_grad=True)
    losses = mask_losses(logits, torch.tensor([[[False, True], [True, False]]]))
    loss = losses.focal.sum() + losses.dice.sum() + losses.even.sum()
    loss.backward()
    assert torch.isfinite(loss) and logits.grad is not None and torch.isfinite(logits.grad).all()


def test_an_error_names_losses_that_are_not_finite() -> None:
    one = torch.tensor(1.0)
    require_finite(Losses(one, one, one, one, one, one), "step 7")
    with pytest.raises(
        FloatingPointError, match=r"step 7: dice, total loss is not finite; lower the learning rate"
    ):
        require_finite(Losses(one, one * torch.nan, one, one, one, one * torch.inf), "step 7")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, t: (s._replace(iou=s.iou[:, :1]), t, 3), "iou, presence: expected"),
        (lambda s, t: (s, t[:, 1:], 3), "truth: expected"),
        (lambda s, t: (s, t, 0), "num_objects: expected 1 or more"),
    ],
)
def test_errors_name_the_invalid_argument(
    change: Callable[[Step, Tensor], tuple[Step, Tensor, float]], message: str
) -> None:
    steps, truth = fixed_steps()
    with pytest.raises(ValueError, match=message):
        step_losses(*change(steps[0], truth))
    with pytest.raises(ValueError, match="frames: expected steps for 1 frames"):
        clip_losses([], truth[None], 3)
