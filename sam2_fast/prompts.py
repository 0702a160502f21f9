"""Checks of prompts, and their conversion to tensors in model pixels.

A prompt of a user is a list, an array or a tensor on any device.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import sam2_fast
from sam2_fast.ops.core.mask_values import bool_tensor, plain_tensor
from sam2_fast.ops.core.transfer import upload
from sam2_fast.types import Points

LABELS = (-1, 0, 1)

_LIBRARIES = tuple(str(Path(str(module.__file__)).parent) + os.sep for module in (sam2_fast, torch))


def caller_stacklevel() -> int:
    """`stacklevel`, for `warnings.warn` in the calling function, of the user's line.

    That is the first frame outside this package and torch.
    """
    frame = sys._getframe(1)
    level = 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_LIBRARIES):
        frame = frame.f_back
        level += 1
    return level


def as_float(name: str, values: Any) -> Tensor:
    """A detached float32 CPU copy of real numbers in a tensor, an array or nested lists.

    Raises ValueError for anything else, and for NaN and infinity.
    """
    if isinstance(values, Tensor):
        tensor = plain_tensor(values, name).to("cpu", torch.float32, copy=True)
    else:
        shown = type(values).__name__
        try:
            array = np.asarray(values)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{name}: expected numbers, got {shown} ({error})") from None
        if array.dtype.kind not in "biuf":
            raise ValueError(f"{name}: expected numbers, got {shown} of {array.dtype}")
        with np.errstate(over="ignore"):
            tensor = torch.from_numpy(array.astype(np.float32))
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{name}: expected finite numbers, got NaN or infinity")
    return tensor


def click_points(points: Any, labels: Any) -> tuple[Tensor, Tensor]:
    """points [P, 2] or [1, P, 2] (x, y) and labels [P] or [1, P] -> float32 [P, 2], int32 [P].

    Raises ValueError for invalid shapes, counts and labels.
    """
    if (points is None) != (labels is None):
        present, absent = ("points", "labels") if labels is None else ("labels", "points")
        raise ValueError(
            f"points and labels must be provided together: got {present} without {absent}"
        )
    if points is None:
        return torch.zeros(0, 2), torch.zeros(0, dtype=torch.int32)
    coords = as_float("points", points)
    kinds = as_float("labels", labels)
    coords = coords[0] if coords.ndim == 3 and coords.shape[0] == 1 else coords
    kinds = kinds[0] if kinds.ndim == 2 and kinds.shape[0] == 1 else kinds
    if coords.numel() == 0:
        coords = coords.reshape(0, 2)
    _check_points("points", coords, "(P, 2)", ndims=(2,))
    return coords, _checked_labels("labels", kinds, coords)


def batched_points(point_coords: Any, point_labels: Any) -> tuple[Tensor | None, Tensor | None]:
    """Points as float32 [B, P, 2] and labels as int32 [B, P], or None for both.

    point_coords: [P, 2] or [B, P, 2]. point_labels: [P] or [B, P].
    """
    if point_coords is None and point_labels is None:
        return None, None
    if point_labels is None:
        raise ValueError(
            "point_labels: expected one label per point (1 object, 0 background), got None with "
            "point_coords"
        )
    if point_coords is None:
        raise ValueError("point_coords: expected the points that point_labels label, got None")
    coords = as_float("point_coords", point_coords)
    labels = as_float("point_labels", point_labels)
    if coords.numel() == 0 and coords.ndim < 3:
        coords = coords.reshape(0, 2)
        labels = labels.reshape(-1)
    _check_points("point_coords", coords, "(P, 2) or (B, P, 2)", ndims=(2, 3))
    kinds = _checked_labels("point_labels", labels, coords)
    return (coords[None], kinds[None]) if coords.ndim == 2 else (coords, kinds)


def _check_points(name: str, coords: Tensor, shape: str, ndims: tuple[int, ...]) -> None:
    if coords.ndim not in ndims or coords.shape[-1] != 2:
        raise ValueError(f"{name}: expected shape {shape} of (x, y), got {tuple(coords.shape)}")


def _checked_labels(name: str, labels: Tensor, coords: Tensor) -> Tensor:
    """`labels` as int32. Raises ValueError unless each of `coords` [..., 2] has one of `LABELS`."""
    if labels.shape != coords.shape[:-1]:
        raise ValueError(
            f"{name}: expected one per point, shape {tuple(coords.shape[:-1])}, got "
            f"{tuple(labels.shape)}"
        )
    wrong = [value for value in labels.flatten().tolist() if value not in LABELS]
    if wrong:
        raise ValueError(
            f"{name}: expected 1 (object), 0 (background) or -1 (padding), got {wrong[0]:g}"
        )
    return labels.to(torch.int32)


def box_corners(box: Any) -> Tensor:
    """box (x0, y0, x1, y1), [4], [1, 4] or [2, 2] -> its two corners, float32 [2, 2].

    Raises ValueError for an invalid box.
    """
    corners = as_float("box", box)
    if corners.numel() != 4:
        raise ValueError(
            f"box: expected 4 numbers (x0, y0, x1, y1), one box per object, got shape "
            f"{tuple(corners.shape)}"
        )
    return _ordered_corners(corners.reshape(1, 2, 2))[0]


def batched_corners(box: Any) -> Tensor | None:
    """[4], [B, 4] or [B, 2, 2] (x0, y0, x1, y1) -> corners float32 [B, 2, 2], or None."""
    if box is None:
        return None
    boxes = as_float("box", box)
    if boxes.shape[-1:] != (4,) and boxes.shape[-2:] != (2, 2) and boxes.shape != (0,):
        raise ValueError(
            f"box: expected shape (4,) or (B, 4) of (x0, y0, x1, y1), got {tuple(boxes.shape)}"
        )
    return _ordered_corners(boxes.reshape(-1, 2, 2))


def _ordered_corners(corners: Tensor) -> Tensor:
    """corners: [B, 2, 2]. Raises ValueError unless x0 <= x1 and y0 <= y1."""
    wrong = (corners[:, 1] < corners[:, 0]).any(-1)
    if wrong.any():
        row = corners[wrong][0].flatten().tolist()
        raise ValueError(
            f"box: expected x0 <= x1 and y0 <= y1, got {row}; swap the corners (boxes are "
            f"corners, not x, y, width, height)"
        )
    return corners


def _check_extent(
    coordinates: Sequence[Tensor], width: int, height: int, normalize: bool, strict: bool
) -> None:
    """Warn of points outside the image, or raise ValueError if `strict`.

    coordinates: [..., 2] each, pixels if `normalize`, else fractions of the image.
    """
    extent = torch.tensor([width, height], dtype=torch.float32) if normalize else torch.ones(2)
    if not any(((points < 0) | (points > extent)).any() for points in coordinates):
        return
    if strict:
        raise ValueError(
            f"points, box: expected coordinates in the {width} x {height} image, got one outside "
            "it; correct it, or set strict_prompts of the model to False"
        )
    message = f"a point or box lies outside the {width} x {height} image; it is used as given"
    warnings.warn(message, UserWarning, stacklevel=caller_stacklevel())


def to_model_points(
    points: Any,
    labels: Any,
    box: Any,
    width: int,
    height: int,
    size: int,
    normalize: bool,
    device: torch.device,
    strict: bool = False,
) -> Points:
    """Clicks and a box of one object in model pixels: coords [1, P, 2], labels [1, P].

    The corners of the box come first, with labels 2 and 3.
    normalize: coordinates are pixels of the `width` x `height` image, otherwise fractions of it.
    strict: raise ValueError for coordinates outside the image, instead of a warning.
    """
    coords, kinds = click_points(points, labels)
    if box is not None:
        coords = torch.cat([box_corners(box), coords])
        kinds = torch.cat([torch.tensor([2, 3], dtype=torch.int32), kinds])
    if coords.shape[0] == 0:
        raise ValueError(
            "at least one of points or box must be provided as input, got no point and no box"
        )
    _check_extent([coords], width, height, normalize, strict)
    extent = torch.tensor([width, height], dtype=torch.float32)
    coords = coords / extent * size if normalize else coords * size
    return Points(upload(coords[None], device), upload(kinds[None], device))


def to_model_mask(mask: Any, size: int, device: torch.device) -> Tensor:
    """One object's mask as [1, 1, size, size] float32, of 0 and 1 except for soft tensors.

    mask: [H, W]; see `as_bool` for what is object. Another size is resized with antialiasing and
        cut at 0.5. Floating-point tensors of other values, such as probabilities or returned
        logits, are resized and cut likewise, and stay as they are if they have this size (official
        `add_new_mask`).
    Raises ValueError for an invalid mask.
    """
    drawn = _drawn(mask) if isinstance(mask, Tensor) else bool_tensor(mask)
    if drawn.ndim != 2 or 0 in drawn.shape:
        raise ValueError(
            f"mask: expected shape (H, W), got {tuple(drawn.shape)}; pass one object's mask, "
            f"e.g. mask[0]"
        )
    original = upload(drawn, device)[None, None].float()
    if drawn.shape == (size, size):
        return original if drawn.dtype == torch.bool else original.clone()
    resized = F.interpolate(
        original, size=(size, size), mode="bilinear", align_corners=False, antialias=True
    )
    return (resized >= 0.5).float()


def _drawn(mask: Tensor) -> Tensor:
    """A mask tensor as bool, or as it is if it is soft: floating point of several values."""
    tensor = plain_tensor(mask, "mask")
    if not tensor.is_floating_point():
        return tensor != 0
    if not torch.isfinite(tensor).all():
        raise ValueError("mask: expected finite numbers, got NaN or infinity")
    return tensor != 0 if ((tensor == 255) | (tensor == 0)).all() else tensor


class ImagePrompts(NamedTuple):
    """B prompts of one image in model pixels; fields of absent kinds are None."""

    coords: Tensor | None  # [B, P, 2] float32
    labels: Tensor | None  # [B, P] int32
    boxes: Tensor | None  # [B, 2, 2] float32 corners
    mask: Tensor | None  # [B or 1, 1, 4h, 4w] float32 logits

    @classmethod
    def ordered(
        cls,
        mask: Tensor | None,
        coords: Tensor | None,
        labels: Tensor | None,
        boxes: Tensor | None,
    ) -> ImagePrompts:
        """From the results of the official `_prep_prompts`, in their order."""
        return cls(coords, labels, boxes, mask)


class CoordinateTransforms(Protocol):
    """The coordinates of `SAM2Transforms`, or of an object in its place."""

    def transform_coords(
        self, coords: Tensor, normalize: bool = ..., orig_hw: tuple[int, int] | None = ...
    ) -> Tensor:
        """Points [..., 2] in model pixels."""

    def transform_boxes(
        self, boxes: Tensor, normalize: bool = ..., orig_hw: tuple[int, int] | None = ...
    ) -> Tensor:
        """Boxes [B, 4] as corners [B, 2, 2] in model pixels."""


def image_prompts(
    point_coords: Any,
    point_labels: Any,
    box: Any,
    mask_input: Any,
    normalize: bool,
    hw: tuple[int, int],
    size: int,
    device: torch.device,
    transforms: CoordinateTransforms,
    transform_on: torch.device,
    strict: bool = False,
) -> ImagePrompts:
    """Check prompts and convert them to model pixels, by `transforms` on a device.

    normalize: coordinates are pixels of the image, otherwise fractions of it.
    hw: (height, width) of the image. size: side of the model's input, pixels.
    strict: as in `to_model_points`. Raises ValueError, which names the argument.
    """
    coords, labels = batched_points(point_coords, point_labels)
    boxes = batched_corners(box)
    mask = _mask_logits(mask_input, size // 4)
    if boxes is None and mask is None and (coords is None or coords.shape[1] == 0):
        raise ValueError(
            "predict: expected points with labels, a box or a mask_input, got no prompt"
        )
    if coords is not None and boxes is not None and len(coords) != len(boxes):
        raise ValueError(
            f"box and point_coords: expected equally many, got {len(boxes)} boxes and "
            f"{len(coords)} sets of points; "
            "give every box its own points as an array (B, P, 2), or call predict once per box"
        )
    count = next((len(prompts) for prompts in (boxes, coords) if prompts is not None), None)
    if mask is not None and count is not None and len(mask) not in (1, count):
        raise ValueError(
            f"mask_input: expected 1 mask or one for each of {count} prompts, got {len(mask)}"
        )
    coordinates = [] if boxes is None else [boxes]
    if coords is not None and labels is not None:
        coordinates.append(coords[labels != -1])  # other points are padding
    _check_extent(coordinates, hw[1], hw[0], normalize, strict)
    coords, labels, boxes, mask = (
        None if x is None else upload(x, transform_on) for x in (coords, labels, boxes, mask)
    )
    if coords is not None:
        coords = transforms.transform_coords(coords, normalize=normalize, orig_hw=hw)
    if boxes is not None:
        boxes = transforms.transform_boxes(boxes.flatten(1), normalize=normalize, orig_hw=hw)
    prompts = (coords, labels, boxes, mask)
    return ImagePrompts(*(None if x is None else upload(x, device) for x in prompts))


def _mask_logits(mask_input: Any, side: int) -> Tensor | None:
    """[1, side, side] or [B, 1, side, side] logits -> [B, 1, side, side]."""
    if mask_input is None:
        return None
    mask = as_float("mask_input", mask_input)
    mask = mask[None] if mask.ndim == 3 else mask
    if mask.ndim != 4 or mask.shape[1:] != (1, side, side):
        raise ValueError(
            f"mask_input: expected low-resolution logits of shape (1, {side}, {side}) or (B, 1, "
            f"{side}, {side}), got {tuple(as_float('mask_input', mask_input).shape)}; pass one of "
            f"the masks that predict returns third, e.g. low_res[i][None]"
        )
    return mask


def join_points(
    coords: Tensor | None, labels: Tensor | None, boxes: Tensor | None
) -> Points | None:
    """Corners of boxes, labelled 2 and 3, then clicks: [B, P, 2] and [B, P]; or None."""
    if boxes is None:
        return None if coords is None or labels is None else Points(coords, labels)
    corners = boxes.reshape(-1, 2, 2)
    kinds = torch.arange(2, 4, dtype=torch.int32, device=corners.device).expand(len(corners), 2)
    if coords is None or labels is None:
        return Points(corners, kinds)
    return Points(torch.cat([corners, coords], 1), torch.cat([kinds, labels.to(torch.int32)], 1))


def stack_points(prompts: Sequence[Points]) -> Points:
    """Prompts of different lengths as one batch.

    Shorter prompts are filled up with points that are False in `present`.
    """
    lengths = [p.labels.shape[1] for p in prompts]
    longest = max(lengths)
    if min(lengths) == longest:
        coords = torch.cat([p.coords for p in prompts])
        return Points(coords, torch.cat([p.labels for p in prompts]))
    padded = []
    for p, length in zip(prompts, lengths, strict=True):
        gap = longest - length
        padded.append(
            (
                F.pad(p.coords, (0, 0, 0, gap)),
                F.pad(p.labels, (0, gap), value=-1),
                F.pad(torch.ones_like(p.labels, dtype=torch.bool), (0, gap)),
            )
        )
    return Points(*map(torch.cat, zip(*padded, strict=True)))


def rows_of(points: Points, rows: slice, device: torch.device) -> Points:
    """The prompts `rows` of a batch, on `device`."""
    present = None if points.present is None else upload(points.present[rows], device)
    return Points(upload(points.coords[rows], device), upload(points.labels[rows], device), present)
