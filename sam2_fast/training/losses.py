"""The losses: focal and dice loss of the best mask, error of predicted IoU, and object presence.

Source: SAM 2 paper, appendix D.2; official `MultiStepMultiMasksAndIous` with the settings of the
    released recipe.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class LossWeights:
    """Weights of the losses, and the parameters of the focal loss.

    balance: weight of pixels on the object; the background has 1 - balance.
    focus: exponent that increases the weight of wrong pixels.
    even: weight of a cross-entropy in which object and background count equally. The released
        recipe has none, but from random weights the focal loss alone gets stuck at empty masks.
    """

    mask: float = 20.0
    dice: float = 1.0
    iou: float = 1.0
    presence: float = 1.0
    even: float = 0.0
    balance: float = 0.25
    focus: float = 2.0


class Step(NamedTuple):
    """The decoder's output for N objects after one prompt or correction, with M masks each."""

    logits: Tensor  # [N, M, H, W], at the resolution of the truth
    iou: Tensor  # [N, M] predicted
    presence: Tensor  # [N, 1] logit


class Losses(NamedTuple):
    """Scalars; `total` is the weighted sum of the others."""

    mask: Tensor
    dice: Tensor
    iou: Tensor
    presence: Tensor
    even: Tensor
    total: Tensor


class MaskLosses(NamedTuple):
    """[N, M] each, for N objects and M masks per object."""

    focal: Tensor
    dice: Tensor
    even: Tensor


def mask_losses(
    logits: Tensor, truth: Tensor, balance: float = 0.25, focus: float = 2.0
) -> MaskLosses:
    """Losses of masks. logits: [N, M, H, W]; truth: [N, H, W] bool.

    focal: cross-entropy with low weight on easy pixels, averaged over pixels (arXiv 1708.02002).
    dice: one minus twice the overlap over the sum of both areas, with one added to both counts.
    even: cross-entropy, averaged over the object and over the background, with weight one half
        each.
    """
    x = logits.flatten(2)
    on = truth.flatten(1).to(logits.dtype)
    # [N, H * W, 2]: products with it sum over the object, and over the background.
    regions = torch.stack([on, 1 - on], dim=-1)
    margin = x * (2 * on - 1)[:, None]  # logit of the true class
    entropy = -F.logsigmoid(margin)
    error = torch.sigmoid(-margin)  # 1 minus the probability of the true class
    focal = ((error**focus * entropy) @ regions) @ logits.new_tensor([balance, 1 - balance])
    area = regions.sum(1)[:, None]  # [N, 1, 2]
    missed, excess = (error @ regions).unbind(-1)
    overlap = area[..., 0] - missed
    dice = 1 - (2 * overlap + 1) / (overlap + excess + area[..., 0] + 1)
    even = ((entropy @ regions) / area.clamp(min=1)).mean(-1)
    return MaskLosses(focal / x.shape[-1], dice, even)


def iou_loss(logits: Tensor, truth: Tensor, predicted: Tensor) -> Tensor:
    """Absolute difference between `predicted` and the IoU of the mask at threshold 0: [...].

    logits, truth: [..., H, W]. predicted: [...]. The mask gets no gradient.
    """
    mask, true_mask = (logits > 0).flatten(-2), (truth > 0).flatten(-2)
    intersection, union = (mask & true_mask).sum(-1), (mask | true_mask).sum(-1)
    actual = intersection.to(predicted.dtype) / union.clamp(min=1)
    return (predicted - actual).abs()


def step_losses(
    step: Step, truth: Tensor, num_objects: float, weights: LossWeights | None = None
) -> Losses:
    """Losses of one step.

    truth: [N, H, W] bool.
    num_objects: divisor of the sums, the mean number of objects over all ranks, at least 1.
    Of several masks, only the one with the smallest weighted loss gets mask losses; the IoU loss is
    the mean over all of them. For an absent object only its presence counts.
    """
    weights = weights or LossWeights()
    _check(step, truth, num_objects)
    mask = mask_losses(step.logits, truth, weights.balance, weights.focus)
    cost = weights.mask * mask.focal + weights.dice * mask.dice + weights.even * mask.even
    best = cost.argmin(1, keepdim=True)  # [N, 1]
    present = truth.flatten(1).any(1).to(cost.dtype)[:, None]
    quality = iou_loss(step.logits, truth[:, None].expand_as(step.logits), step.iou).mean(
        1, keepdim=True
    )
    focal, overlap, even, iou = (
        (part * present).sum() / num_objects
        for part in (*(m.gather(1, best) for m in mask), quality)
    )
    entropy = (
        F.binary_cross_entropy_with_logits(
            step.presence, present.to(step.presence.dtype), reduction="sum"
        )
        / num_objects
    )
    return _weighted(focal, overlap, iou, entropy, even, weights)


def clip_losses(
    frames: Sequence[Sequence[Step]],
    truth: Tensor,
    num_objects: float,
    weights: LossWeights | None = None,
) -> Losses:
    """The sum of the losses over the steps of all frames.

    frames: the steps of each frame. truth: [T, N, H, W] bool.
    """
    weights = weights or LossWeights()
    if len(frames) != truth.shape[0] or not any(frames):
        raise ValueError(
            f"frames: expected steps for {truth.shape[0]} frames, got "
            f"{[len(steps) for steps in frames]}"
        )
    all_losses = [
        step_losses(step, truth[t], num_objects, weights)
        for t, steps in enumerate(frames)
        for step in steps
    ]
    mask, dice, iou, presence, even = (
        torch.stack([losses[i] for losses in all_losses]).sum() for i in range(5)
    )
    return _weighted(mask, dice, iou, presence, even, weights)


def require_finite(losses: Losses, where: str) -> None:
    """Raise FloatingPointError if a loss is not finite, so that training stops.

    where: start of the error message, which also names the losses that are not finite.
    """
    wrong = [name for name, value in losses._asdict().items() if not bool(torch.isfinite(value))]
    if wrong:
        raise FloatingPointError(
            f"{where}: {', '.join(wrong)} loss is not finite; lower the learning rate, or check "
            f"this step's data"
        )


def _weighted(
    mask: Tensor, dice: Tensor, iou: Tensor, presence: Tensor, even: Tensor, weights: LossWeights
) -> Losses:
    total = (
        weights.mask * mask
        + weights.dice * dice
        + weights.iou * iou
        + weights.presence * presence
        + weights.even * even
    )
    return Losses(mask, dice, iou, presence, even, total)


def _check(step: Step, truth: Tensor, num_objects: float) -> None:
    if step.logits.ndim != 4 or truth.shape != (step.logits.shape[0], *step.logits.shape[2:]):
        raise ValueError(
            f"truth: expected [N, H, W] for logits [N, M, H, W], got {tuple(truth.shape)} for "
            f"{tuple(step.logits.shape)}"
        )
    if step.iou.shape != step.logits.shape[:2] or step.presence.shape != (truth.shape[0], 1):
        raise ValueError(
            f"iou, presence: expected [N, M] and [N, 1], got {tuple(step.iou.shape)} and "
            f"{tuple(step.presence.shape)}"
        )
    if num_objects < 1:
        raise ValueError(f"num_objects: expected 1 or more, got {num_objects}")
