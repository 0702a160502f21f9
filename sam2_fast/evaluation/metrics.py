"""J and F of masks: DAVIS' region similarity and boundary accuracy, bit-exact on every device.

Source: the DAVIS challenge (Perazzi et al., CVPR 2016) as implemented by the SA-V evaluator.
    Boundaries are matched by exact squared distances, which is equivalent to dilation with a disk,
    so neither OpenCV nor scikit-image is needed.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

BOUND = 0.008
"""Tolerance of a boundary, as a fraction of the image's diagonal."""


def region_similarity(masks: Tensor, truth: Tensor) -> Tensor:
    """J, intersection over union: [...] float64, 1 if both masks are empty.

    masks, truth: [..., H, W] bool.
    """
    _check(masks, truth)
    intersection, union = ((x.flatten(-2).sum(-1)) for x in (masks & truth, masks | truth))
    return torch.where(union > 0, intersection.double() / union.clamp(min=1), 1.0)


def boundary_accuracy(masks: Tensor, truth: Tensor, bound: float = BOUND) -> Tensor:
    """F, the harmonic mean of the fractions of each boundary that lie near the other.

    masks, truth: [..., H, W] bool -> [...] float64.
    bound: tolerance in pixels, or if below 1 as a fraction of the diagonal; rounded up.
    F is 1 if neither mask has a boundary, and 0 if only one of them has.
    """
    _check(masks, truth)
    radius = tolerance(masks.shape[-2], masks.shape[-1], bound)
    edges, true_edges = boundary(masks), boundary(truth)
    if masks.device.type == "cpu":
        edges, true_edges = _crop(edges, true_edges, radius)
    precision = _fraction(edges, near(true_edges, radius))
    recall = _fraction(true_edges, near(edges, radius))
    return torch.where(
        precision + recall > 0, 2 * precision * recall / (precision + recall).clamp(min=1e-300), 0.0
    )


def tolerance(height: int, width: int, bound: float = BOUND) -> int:
    """The tolerance of a boundary in pixels."""
    return (
        math.ceil(bound)
        if bound >= 1
        else math.ceil(bound * math.sqrt(height * height + width * width))
    )


def boundary(masks: Tensor) -> Tensor:
    """Pixels that differ from their right, lower or lower right neighbour: [..., H, W] bool.

    Pixels on the image's border have no neighbour outside the image.
    """
    edges = torch.zeros_like(masks)
    here = masks[..., :-1, :-1]
    edges[..., :-1, :-1] = (
        (here ^ masks[..., :-1, 1:]) | (here ^ masks[..., 1:, :-1]) | (here ^ masks[..., 1:, 1:])
    )
    edges[..., -1, :-1] = masks[..., -1, :-1] ^ masks[..., -1, 1:]
    edges[..., :-1, -1] = masks[..., :-1, -1] ^ masks[..., 1:, -1]
    return edges


def near(points: Tensor, radius: int) -> Tensor:
    """Pixels within `radius` of a point, with a squared distance of at most radius^2.

    points: [..., H, W] bool -> the same shape.
    """
    height, width = points.shape[-2:]
    rows = torch.arange(height, device=points.device, dtype=torch.int32)[:, None]
    far = height + radius + 1
    above = torch.where(points, rows, -far).cummax(-2).values
    below = torch.where(points, rows, 2 * far).flip(-2).cummin(-2).values.flip(-2)
    distance = torch.minimum(rows - above, below - rows)  # to the nearest point of the same column
    reached = torch.zeros_like(points)
    for step in range(min(radius, width - 1) + 1):
        column = distance <= math.isqrt(radius * radius - step * step)
        reached[..., step:] |= column[..., : width - step]
        reached[..., : width - step] |= column[..., step:]
    return reached


def _fraction(points: Tensor, region: Tensor) -> Tensor:
    """Fraction of the points that lie in the region; 1 without any point."""
    count = points.flatten(-2).sum(-1)
    return torch.where(
        count > 0, (points & region).flatten(-2).sum(-1).double() / count.clamp(min=1), 1.0
    )


def _crop(a: Tensor, b: Tensor, margin: int) -> tuple[Tensor, Tensor]:
    """Both masks without rows and columns that are further than `margin` from all their points."""
    both = (a | b).flatten(0, -3).any(0) if a.ndim > 2 else a | b
    parts = []
    for dim in (1, 0):
        positions = both.any(dim).nonzero()
        first, last = (int(positions[0]), int(positions[-1])) if len(positions) else (0, 0)
        parts.append(slice(max(first - margin, 0), last + margin + 1))
    return a[..., parts[0], parts[1]], b[..., parts[0], parts[1]]


def _check(masks: Tensor, truth: Tensor) -> None:
    if masks.shape != truth.shape or masks.ndim < 2 or 0 in masks.shape[-2:]:
        raise ValueError(
            f"masks, truth: expected the same shape [..., H, W], got {tuple(masks.shape)} and "
            f"{tuple(truth.shape)}"
        )
    for name, x in (("masks", masks), ("truth", truth)):
        if x.dtype != torch.bool:
            raise TypeError(
                f"{name}: expected bool, got {x.dtype}; compare logits with a threshold first, "
                f"e.g. masks > 0"
            )
