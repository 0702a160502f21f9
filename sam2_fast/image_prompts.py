"""Prompts of one image, as users give them (lists, arrays, tensors on any device), to tensors in model pixels; checked first."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_fast.ops.transfer import upload
from sam2_fast.prompts import LABELS, as_float
from sam2_fast.types import Points


class ImagePrompts(NamedTuple):
    """B prompts of one image in model pixels; None for a kind that was not given."""

    coords: Tensor | None  # [B, P, 2] float32
    labels: Tensor | None  # [B, P] int32
    boxes: Tensor | None  # [B, 2, 2] float32 corners
    mask: Tensor | None  # [B or 1, 1, 4h, 4w] float32 logits


def image_prompts(
    point_coords: Any, point_labels: Any, box: Any, mask_input: Any, normalize: bool, hw: tuple[int, int], size: int, device: torch.device
) -> ImagePrompts:
    """Check prompts and bring them to model pixels. hw: (height, width) of the image; size: side of the model's input, pixels.

    normalize: coordinates are pixels of the image, else fractions of it. Raises ValueError that names the argument.
    """
    coords, labels = _points(point_coords, point_labels)
    boxes = _boxes(box)
    mask = _mask(mask_input, size // 4)
    if boxes is None and mask is None and (coords is None or coords.shape[1] == 0):
        raise ValueError("predict: expected points with labels, a box or a mask_input, got no prompt")
    if coords is not None and boxes is not None and len(coords) != len(boxes):
        raise ValueError(
            f"box and point_coords: expected equally many, got {len(boxes)} boxes and {len(coords)} sets of points; "
            "give every box its own points as an array (B, P, 2), or call predict once per box"
        )
    count = len(boxes) if boxes is not None else None if coords is None else len(coords)
    if mask is not None and count is not None and len(mask) not in (1, count):
        raise ValueError(f"mask_input: expected 1 mask or one for each of {count} prompts, got {len(mask)}")
    _warn_outside(coords, labels, boxes, normalize, hw)
    extent = torch.tensor([hw[1], hw[0]], dtype=torch.float32)

    def place(points: Tensor | None) -> Tensor | None:
        """To model pixels, in the official order of operations."""
        return None if points is None else upload((points / extent if normalize else points) * size, device)

    return ImagePrompts(
        place(coords), None if labels is None else upload(labels, device), place(boxes), None if mask is None else upload(mask, device)
    )


def join_points(coords: Tensor | None, labels: Tensor | None, boxes: Tensor | None) -> Points | None:
    """Corners of boxes (labelled 2 and 3), then clicks: [B, P, 2] and [B, P]; None where there is neither."""
    if boxes is None:
        return None if coords is None or labels is None else Points(coords, labels)
    corners = boxes.reshape(-1, 2, 2)
    kinds = torch.arange(2, 4, dtype=torch.int32, device=corners.device).expand(len(corners), 2)
    if coords is None or labels is None:
        return Points(corners, kinds)
    return Points(torch.cat([corners, coords], 1), torch.cat([kinds, labels.to(torch.int32)], 1))


def stack_points(prompts: Sequence[Points]) -> Points:
    """Prompts of different lengths as one batch: shorter ones are filled up with points that are marked as not present."""
    length = max(p.labels.shape[1] for p in prompts)
    if all(p.labels.shape[1] == length for p in prompts):
        return Points(torch.cat([p.coords for p in prompts]), torch.cat([p.labels for p in prompts]))
    gaps = [length - p.labels.shape[1] for p in prompts]
    coords = torch.cat([F.pad(p.coords, (0, 0, 0, gap)) for p, gap in zip(prompts, gaps, strict=True)])
    labels = torch.cat([F.pad(p.labels, (0, gap), value=-1) for p, gap in zip(prompts, gaps, strict=True)])
    present = torch.cat([F.pad(torch.ones_like(p.labels, dtype=torch.bool), (0, gap)) for p, gap in zip(prompts, gaps, strict=True)])
    return Points(coords, labels, present)


def rows_of(points: Points, rows: slice, device: torch.device) -> Points:
    """Some prompts of a batch, on `device`."""
    present = None if points.present is None else upload(points.present[rows], device)
    return Points(upload(points.coords[rows], device), upload(points.labels[rows], device), present)


def _points(point_coords: Any, point_labels: Any) -> tuple[Tensor | None, Tensor | None]:
    """[P, 2] or [B, P, 2] and [P] or [B, P] -> [B, P, 2] and int32 [B, P]."""
    if point_coords is None or point_labels is None:
        if point_coords is not None:
            raise ValueError("point_labels: expected one label per point (1 object, 0 background), got None with point_coords")
        if point_labels is not None:
            raise ValueError("point_coords: expected the points that point_labels label, got None")
        return None, None
    coords, labels = as_float("point_coords", point_coords), as_float("point_labels", point_labels)
    if coords.numel() == 0 and coords.ndim < 3:
        coords, labels = coords.reshape(0, 2), labels.reshape(-1)
    if coords.ndim not in (2, 3) or coords.shape[-1] != 2:
        raise ValueError(f"point_coords: expected shape (P, 2) or (B, P, 2) of (x, y), got {tuple(coords.shape)}")
    if labels.shape != coords.shape[:-1]:
        raise ValueError(f"point_labels: expected one per point, shape {tuple(coords.shape[:-1])}, got {tuple(labels.shape)}")
    wrong = [value for value in labels.flatten().tolist() if value not in LABELS]
    if wrong:
        raise ValueError(f"point_labels: expected 1 (object), 0 (background) or -1 (padding), got {wrong[0]:g}")
    coords, labels = (coords[None], labels[None]) if coords.ndim == 2 else (coords, labels)
    return coords, labels.to(torch.int32)


def _boxes(box: Any) -> Tensor | None:
    """[4], [B, 4] or [B, 2, 2] (x0, y0, x1, y1) -> corners [B, 2, 2]."""
    if box is None:
        return None
    boxes = as_float("box", box)
    if boxes.shape[-1:] != (4,) and boxes.shape[-2:] != (2, 2) and boxes.shape != (0,):
        raise ValueError(f"box: expected shape (4,) or (B, 4) of (x0, y0, x1, y1), got {tuple(boxes.shape)}")
    corners = boxes.reshape(-1, 2, 2)
    wrong = (corners[:, 1] < corners[:, 0]).any(-1)
    if wrong.any():
        row = corners[wrong][0].flatten().tolist()
        raise ValueError(f"box: expected x0 <= x1 and y0 <= y1, got {row}; swap the corners (boxes are corners, not x, y, width, height)")
    return corners


def _mask(mask_input: Any, side: int) -> Tensor | None:
    """[1, side, side] or [B, 1, side, side] logits -> [B, 1, side, side]."""
    if mask_input is None:
        return None
    mask = as_float("mask_input", mask_input)
    mask = mask[None] if mask.ndim == 3 else mask
    if mask.ndim != 4 or mask.shape[1:] != (1, side, side):
        raise ValueError(
            f"mask_input: expected low-resolution logits of shape (1, {side}, {side}) or (B, 1, {side}, {side}), got "
            f"{tuple(as_float('mask_input', mask_input).shape)}; pass one of the masks that predict returns third, e.g. low_res[i][None]"
        )
    return mask


def _warn_outside(coords: Tensor | None, labels: Tensor | None, boxes: Tensor | None, normalize: bool, hw: tuple[int, int]) -> None:
    extent = torch.tensor([hw[1], hw[0]], dtype=torch.float32) if normalize else torch.ones(2)
    given: Sequence[Tensor] = [
        p.reshape(-1, 2) for p in (boxes, None if coords is None or labels is None else coords[labels != -1]) if p is not None
    ]
    if any(((points < 0) | (points > extent)).any() for points in given):
        warnings.warn(f"a point or box lies outside the {hw[1]} x {hw[0]} image; it is used as given", UserWarning, stacklevel=5)
