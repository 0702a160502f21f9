"""Prompts as users give them (lists, arrays, tensors on any device) to tensors in model pixels, checked before anything is computed."""

from __future__ import annotations

import operator
import warnings
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_fast.ops.transfer import upload
from sam2_fast.types import Points

LABELS = (-1, 0, 1)


def frame_number(frame_idx: Any, num_frames: int | None) -> int:
    """An integer (Python, numpy or a one-element integer tensor) in 0 .. num_frames - 1.

    Raises TypeError for floats and booleans, IndexError outside the range.
    """
    if isinstance(frame_idx, bool):
        raise TypeError("frame_idx: expected an integer, got a bool")
    try:
        number = operator.index(frame_idx)
    except TypeError:
        raise TypeError(f"frame_idx: expected an integer, got {type(frame_idx).__name__} {frame_idx!r}") from None
    if number < 0 or (num_frames is not None and number >= num_frames):
        last = "" if num_frames is None else f"..{num_frames - 1}"
        raise IndexError(f"frame_idx: expected 0{last}, got {number}")
    return number


def as_float(name: str, values: Any) -> Tensor:
    """A detached float32 CPU copy; ValueError for what is not numeric or not finite."""
    try:
        tensor = values.detach().to("cpu", torch.float32) if isinstance(values, Tensor) else torch.from_numpy(np.array(values, np.float32))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected numbers, got {type(values).__name__} ({error})") from None
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{name}: expected finite numbers, got NaN or infinity")
    return tensor


def click_points(points: Any, labels: Any) -> tuple[Tensor, Tensor]:
    """points [P, 2] or [1, P, 2] (x, y) and labels [P] or [1, P] -> float32 [P, 2], int32 [P].

    Raises ValueError for shapes, counts and labels that make no sense.
    """
    if (points is None) != (labels is None):
        given, absent = ("points", "labels") if labels is None else ("labels", "points")
        raise ValueError(f"points and labels must be provided together: got {given} without {absent}")
    if points is None:
        return torch.zeros(0, 2), torch.zeros(0, dtype=torch.int32)
    coords, kinds = as_float("points", points), as_float("labels", labels)
    coords = coords[0] if coords.ndim == 3 and coords.shape[0] == 1 else coords
    kinds = kinds[0] if kinds.ndim == 2 and kinds.shape[0] == 1 else kinds
    if coords.numel() == 0:
        coords = coords.reshape(0, 2)
    if coords.ndim != 2 or coords.shape[1] != 2:
        raise ValueError(f"points: expected shape (P, 2) of (x, y), got {tuple(coords.shape)}")
    if kinds.ndim != 1 or kinds.shape[0] != coords.shape[0]:
        raise ValueError(f"labels: expected one per point, shape ({coords.shape[0]},), got {tuple(kinds.shape)}")
    wrong = [v for v in kinds.tolist() if v not in LABELS]
    if wrong:
        raise ValueError(f"labels: expected 1 (object), 0 (background) or -1 (padding), got {wrong[0]:g}")
    return coords, kinds.to(torch.int32)


def box_corners(box: Any) -> Tensor:
    """box (x0, y0, x1, y1), [4], [1, 4] or [2, 2] -> its two corners, float32 [2, 2]. Raises ValueError."""
    corners = as_float("box", box)
    if corners.numel() != 4:
        raise ValueError(f"box: expected 4 numbers (x0, y0, x1, y1), one box per object, got shape {tuple(corners.shape)}")
    corners = corners.reshape(2, 2)
    if (corners[1] < corners[0]).any():
        raise ValueError(f"box: expected x0 <= x1 and y0 <= y1, got {corners.flatten().tolist()}; swap the corners")
    return corners


def to_model_points(
    points: Any, labels: Any, box: Any, width: int, height: int, size: int, normalize: bool, device: torch.device
) -> Points:
    """Clicks and a box of one object to model pixels: coords [1, P, 2], labels [1, P]; the box comes first, labelled 2 and 3.

    normalize: coordinates are pixels of the `width` x `height` image; otherwise they are fractions of it.
    """
    coords, kinds = click_points(points, labels)
    if box is not None:
        coords = torch.cat([box_corners(box), coords])
        kinds = torch.cat([torch.tensor([2, 3], dtype=torch.int32), kinds])
    if coords.shape[0] == 0:
        raise ValueError("at least one of points or box must be provided as input, got no point and no box")
    extent = torch.tensor([width, height], dtype=torch.float32) if normalize else torch.ones(2)
    if ((coords < 0) | (coords > extent)).any():
        warnings.warn(f"a point or box lies outside the {width} x {height} image; it is used as given", UserWarning, stacklevel=4)
    coords = coords / extent * size if normalize else coords * size
    return Points(upload(coords[None], device), upload(kinds[None], device))


def to_model_mask(mask: Any, size: int, device: torch.device) -> Tensor:
    """mask [H, W] of any size and numeric dtype (non-zero is object) -> [1, 1, size, size] float32 of 0 and 1.

    Another size is resized with antialiasing and thresholded at 0.5 (official `add_new_mask`). Raises ValueError.
    """
    tensor = mask.detach() if isinstance(mask, Tensor) else torch.from_numpy(np.ascontiguousarray(mask))
    if tensor.ndim != 2 or 0 in tensor.shape:
        raise ValueError(f"mask: expected shape (H, W), got {tuple(tensor.shape)}; pass one object's mask, e.g. mask[0]")
    if tensor.is_floating_point() and not torch.isfinite(tensor).all():
        raise ValueError("mask: expected finite numbers, got NaN or infinity")
    drawn = (upload(tensor, device) != 0)[None, None].float()
    if tensor.shape == (size, size):
        return drawn
    return (F.interpolate(drawn, size=(size, size), mode="bilinear", align_corners=False, antialias=True) >= 0.5).float()
