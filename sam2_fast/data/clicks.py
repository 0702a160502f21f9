"""Simulated prompts: boxes and points sampled from masks, for training and evaluation.

Masks are [B, 1, H, W] bool. Points are (x, y) in pixels, float32. Labels are int32: 1 object, 0
background, 2 and 3 box corners.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sam2_fast.masks import boxes


def sample_box_points(
    masks: Tensor,
    noise: float = 0.1,
    noise_bound: int = 20,
    top_left_label: int = 2,
    bottom_right_label: int = 3,
    draws: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Corners of each mask's box, [B, 2, 2], and their labels, [B, 2].

    noise: each side moves by at most this fraction of the box's width or height, and by at most
        `noise_bound` pixels. It stays inside the image.
    draws: [B, 1, 4] uniform numbers from 0 to 1 to use; None draws them.
    Source: official `sample_box_points`.
    """
    height, width = masks.shape[-2:]
    corners = boxes(masks).float()  # [B, 1, 4]
    kinds = torch.tensor(
        [top_left_label, bottom_right_label], dtype=torch.int32, device=masks.device
    )
    if noise > 0.0:
        sides = (corners[..., 2:] - corners[..., :2]).repeat(1, 1, 2)
        reach = (sides * noise).clamp(max=float(noise_bound))
        limit = corners.new_tensor([width - 1, height - 1] * 2)
        draws = torch.rand(corners.shape, device=masks.device) if draws is None else draws
        moved = corners + (2 * draws - 1) * reach
        corners = moved.clamp(min=0).minimum(limit)
    return corners.reshape(-1, 2, 2), kinds.expand(masks.shape[0], 2).clone()


def sample_random_points_from_errors(
    gt_masks: Tensor, pred_masks: Tensor | None, num_pt: int = 1, draws: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`num_pt` random points per mask where the prediction is wrong: [B, num_pt, 2], [B, num_pt].

    The label is the true class of the pixel. If a mask has no error, the point is on the
    background.
    draws: [B, num_pt] uniform numbers from 0 to 1. Each one selects a pixel, the same on every
        device. None draws one number for every pixel, as the official function does.
    """
    predicted = _check(gt_masks, pred_masks)
    batch, _, _, width = gt_masks.shape
    wrong = gt_masks ^ predicted
    no_error = ~wrong.flatten(1).any(1)
    candidates = torch.where(no_error[:, None, None, None], ~gt_masks, wrong).flatten(1)
    if draws is None:
        scores = torch.rand(batch, num_pt, candidates.shape[1], device=gt_masks.device)
        index = torch.where(candidates[:, None], scores, -1.0).argmax(-1)
    else:
        count = candidates.cumsum(1)  # int64: candidates up to and including each pixel
        rank = (draws.double() * count[:, -1:]).long().minimum((count[:, -1:] - 1).clamp(min=0))
        index = torch.searchsorted(count, rank + 1).clamp(max=candidates.shape[1] - 1)
    labels = gt_masks.flatten(1).gather(1, index) & candidates.gather(1, index)
    return _as_points(index, width), labels.to(torch.int32)


def sample_one_point_from_error_center(
    gt_masks: Tensor, pred_masks: Tensor | None, padding: bool = True
) -> tuple[Tensor, Tensor]:
    """The point deepest inside the wrong region of each mask: [B, 1, 2], and its label, [B, 1].

    padding: the border of the image counts as an edge of the region.
    Source: official function. Distances are exact, and OpenCV is not needed.
    """
    predicted = _check(gt_masks, pred_masks)
    width = gt_masks.shape[-1]
    missed = squared_distance_to_background((gt_masks & ~predicted)[:, 0], padding).flatten(1)
    excess = squared_distance_to_background((~gt_masks & predicted)[:, 0], padding).flatten(1)
    positive = missed.amax(1) > excess.amax(1)
    index = torch.where(positive, missed.argmax(1), excess.argmax(1))
    return _as_points(index[:, None], width), positive[:, None].to(torch.int32)


def get_next_point(
    gt_masks: Tensor, pred_masks: Tensor | None, method: str
) -> tuple[Tensor, Tensor]:
    """One point per mask: "uniform" over the errors, or at the "center" of the deepest error.

    Raises ValueError for another method.
    """
    if method == "uniform":
        return sample_random_points_from_errors(gt_masks, pred_masks)
    if method == "center":
        return sample_one_point_from_error_center(gt_masks, pred_masks)
    raise ValueError(f"method: expected 'uniform' or 'center', got {method!r}")


def squared_distance_to_background(masks: Tensor, border: bool = True) -> Tensor:
    """Squared Euclidean distance of each pixel to the nearest background pixel, exact.

    masks: [B, H, W] bool -> [B, H, W] float32.
    border: pixels outside the image count as background. Without it, the distances in a mask that
        covers the whole image are infinite.
    """
    far = float("inf")
    padded = torch.nn.functional.pad(masks, (1, 1, 1, 1), value=not border)
    distances = torch.where(padded, far, 0.0)
    for axis in (-1, -2):
        distances = _minimum_along(distances, axis)
    return distances[:, 1:-1, 1:-1]


def _minimum_along(squared: Tensor, axis: int) -> Tensor:
    """For each pixel of a line, the minimum over the line of squared value plus squared offset.

    Stops at the offset from which on no value can become smaller.
    """
    best = squared.clone()
    length = squared.shape[axis]
    for offset in range(1, length):
        worst = best[best.isfinite()].amax() if best.isfinite().all() else float("inf")
        if offset * offset >= worst:
            break
        after = best.narrow(axis, offset, length - offset)
        from_before = squared.narrow(axis, 0, length - offset) + offset * offset
        after.copy_(torch.minimum(after, from_before))
        before = best.narrow(axis, 0, length - offset)
        from_after = squared.narrow(axis, offset, length - offset) + offset * offset
        before.copy_(torch.minimum(before, from_after))
    return best


def _check(gt_masks: Tensor, pred_masks: Tensor | None) -> Tensor:
    predicted = torch.zeros_like(gt_masks) if pred_masks is None else pred_masks
    for name, masks in (("gt_masks", gt_masks), ("pred_masks", predicted)):
        if (
            masks.dtype != torch.bool
            or masks.ndim != 4
            or masks.shape[1] != 1
            or masks.shape != gt_masks.shape
        ):
            raise ValueError(
                f"{name}: expected bool [B, 1, H, W], the same shape for both, got {masks.dtype} "
                f"{tuple(masks.shape)}"
            )
    return predicted


def _as_points(index: Tensor, width: int) -> Tensor:
    return torch.stack(
        [index % width, torch.div(index, width, rounding_mode="floor")], dim=-1
    ).float()
