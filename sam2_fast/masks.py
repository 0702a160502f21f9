"""Functions on masks: holes, specks, overlaps, boxes, stability; the same on every backend."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_fast.ops.connected_components import connected_components, small_components


def fill_holes(
    logits: Tensor, max_area: int, *, threshold: float = 0.0, value: float = 0.1
) -> Tensor:
    """Set background components of at most `max_area` pixels (8-connected) to `value`.

    logits: [N, 1, H, W]; pixels of at most `threshold` are background. Returns a new tensor.
    Source: official `fill_holes_in_mask_scores` (video: threshold 0, value 0.1).
    """
    _check(logits, "logits")
    if max_area <= 0:
        return logits.clone()
    hole = small_components(logits[:, 0] <= threshold, max_area)
    return torch.where(hole[:, None], value, logits)


def remove_holes_and_specks(
    logits: Tensor, *, threshold: float, max_hole_area: float, max_speck_area: float
) -> Tensor:
    """Set holes to threshold + 10, then specks to threshold - 10.

    logits: [N, M, H, W].
    max_hole_area, max_speck_area: in pixels; 0: no holes are filled, no specks are removed.
    Source: official `SAM2Transforms.postprocess_masks`, before its upsampling.
    """
    _check(logits, "logits")
    flat = logits.flatten(0, 1)[:, None]
    if max_hole_area > 0:
        flat = fill_holes(flat, int(max_hole_area), threshold=threshold, value=threshold + 10.0)
    if max_speck_area > 0:
        # Specks of the original masks, as upstream.
        speck = small_components((logits > threshold).flatten(0, 1), int(max_speck_area))
        flat = torch.where(speck[:, None], threshold - 10.0, flat)
    return flat.view_as(logits)


def upsample(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """logits: [N, M, h, w] -> [N, M, *size], bilinear; unchanged if they have that size."""
    _check(logits, "logits")
    if tuple(logits.shape[-2:]) == tuple(size) or logits.shape[0] == 0:
        return logits if logits.shape[0] else logits.new_zeros(*logits.shape[:2], *size)
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def non_overlapping(logits: Tensor) -> Tensor:
    """Keep the highest logit of each pixel, and clamp those of other objects to at most -10.

    logits: [N, 1, H, W], N objects of one image.
    Source: official `_apply_non_overlapping_constraints`.
    """
    _check(logits, "logits")
    if logits.shape[0] < 2:
        return logits
    highest = logits.argmax(dim=0, keepdim=True)
    objects = torch.arange(logits.shape[0], device=logits.device).view(-1, 1, 1, 1)
    return torch.where(highest == objects, logits, logits.clamp(max=-10.0))


def boxes(masks: Tensor) -> Tensor:
    """masks: [..., H, W] bool -> [..., 4] int64 boxes (x0, y0, x1, y1).

    x1 and y1 are the last pixels of the mask. The box of an empty mask is zeros.
    Source: official `batched_mask_to_box`.
    """
    height, width = masks.shape[-2:]
    if masks.numel() == 0:
        return torch.zeros(*masks.shape[:-2], 4, dtype=torch.int64, device=masks.device)
    rows, columns = masks.any(-1), masks.any(-2)
    y, x = torch.arange(height, device=masks.device), torch.arange(width, device=masks.device)
    y0, y1 = torch.where(rows, y, height).amin(-1), torch.where(rows, y, -1).amax(-1)
    x0, x1 = torch.where(columns, x, width).amin(-1), torch.where(columns, x, -1).amax(-1)
    return torch.stack([x0, y0, x1, y1], dim=-1) * rows.any(-1, keepdim=True)


def stability_score(logits: Tensor, threshold: float, offset: float) -> Tensor:
    """IoU of the masks at `threshold` + `offset` and `threshold` - `offset`, with exact counts.

    logits: [..., H, W] -> [...] float32.
    Source: official `calculate_stability_score`. There, int16 sums overflow above 32,767 pixels.
    """
    inner = (logits > threshold + offset).flatten(-2).sum(-1)
    outer = (logits > threshold - offset).flatten(-2).sum(-1)
    return inner / outer


def _check(logits: Tensor, name: str) -> None:
    if logits.ndim != 4:
        raise ValueError(f"{name}: expected shape [N, M, H, W], got {tuple(logits.shape)}")


def without_small_regions(masks: Tensor, area_thresh: float, mode: str) -> tuple[Tensor, Tensor]:
    """Masks without holes or specks of fewer than `area_thresh` pixels, and which masks changed.

    masks: [N, H, W] bool -> [N, H, W] bool and [N] bool.
    mode: "holes" fills holes, "islands" removes specks. Components are 8-connected. If all islands
        of a mask are small, the largest one is kept, or the first of several largest ones.
    """
    largest_small = math.ceil(area_thresh) - 1
    if largest_small < 1 or len(masks) == 0:
        return masks, torch.zeros(len(masks), dtype=torch.bool, device=masks.device)
    if mode == "holes":
        small = small_components(~masks, largest_small)
        return masks | small, small.flatten(1).any(1)
    small = small_components(masks, largest_small)
    cleaned = masks & ~small
    changed = small.flatten(1).any(1)
    vanished = changed & ~cleaned.flatten(1).any(1)
    if vanished.any():
        labels, areas = connected_components(masks[vanished])
        # A label is the first pixel of its component: of several largest components argmax selects
        # the first one.
        first = areas.flatten(1).argmax(1)
        label = labels.flatten(1).gather(1, first[:, None])
        cleaned[vanished] = labels == label[..., None]
    return cleaned, changed
