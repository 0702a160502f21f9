"""J and F of masks: region similarity and boundary accuracy of DAVIS, to the bit on every device.

Source: the DAVIS challenge (Perazzi et al., CVPR 2016) as the SA-V evaluator has it. Boundaries are
    matched by exact squared distances,
which is what dilating with a disk decides: no OpenCV, no scikit-image.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

BOUND = 0.008
"""How far a boundary may be off, as a share of the image's diagonal."""


def region_similarity(masks: Tensor, truth: Tensor) -> Tensor:
    """J, intersection over union. masks, truth: [..., H, W] bool -> [...] float64, 1 where both are
    empty.
    """
    _check(masks, truth)
    both, either = ((x.flatten(-2).sum(-1)) for x in (masks & truth, masks | truth))
    return torch.where(either > 0, both.double() / either.clamp(min=1), 1.0)


def boundary_accuracy(masks: Tensor, truth: Tensor, bound: float = BOUND) -> Tensor:
    """F, the harmonic mean of how much of each boundary lies near the other. masks, truth: [..., H,
    W] bool -> [...] float64.

    bound: how near, in pixels, or below 1 as a share of the diagonal, rounded up. Two masks without
        boundary give 1, one alone 0.
    """
    _check(masks, truth)
    radius = tolerance(masks.shape[-2], masks.shape[-1], bound)
    found, wanted = boundary(masks), boundary(truth)
    if masks.device.type == "cpu":
        found, wanted = _cropped(found, wanted, radius)
    precision = _share(found, near(wanted, radius))
    recall = _share(wanted, near(found, radius))
    return torch.where(
        precision + recall > 0, 2 * precision * recall / (precision + recall).clamp(min=1e-300), 0.0
    )


def tolerance(height: int, width: int, bound: float = BOUND) -> int:
    """Pixels that a boundary may be off."""
    return (
        math.ceil(bound)
        if bound >= 1
        else math.ceil(bound * math.sqrt(height * height + width * width))
    )


def boundary(masks: Tensor) -> Tensor:
    """Pixels whose right, lower or lower right neighbour is of the other kind; the image's border
    counts for none. [..., H, W] bool.
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
    """Which pixels lie within `radius` pixels of a point: squared distance at most radius^2.
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


def _share(points: Tensor, place: Tensor) -> Tensor:
    """Of the points those that lie in the place; 1 where there is no point."""
    count = points.flatten(-2).sum(-1)
    return torch.where(
        count > 0, (points & place).flatten(-2).sum(-1).double() / count.clamp(min=1), 1.0
    )


def _cropped(a: Tensor, b: Tensor, margin: int) -> tuple[Tensor, Tensor]:
    """Both without the rows and columns that are further than `margin` from all their points."""
    both = (a | b).flatten(0, -3).any(0) if a.ndim > 2 else a | b
    parts = []
    for dim in (1, 0):
        places = both.any(dim).nonzero()
        first, last = (int(places[0]), int(places[-1])) if len(places) else (0, 0)
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
