"""Write masks as PNG files with the DAVIS palette: one object, or all objects of a frame."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sam2_fast.files.atomic import whole_file
from sam2_fast.io.palette import DAVIS_PALETTE
from sam2_fast.ops.core.mask_values import as_bool

Mask = npt.NDArray[np.bool_]
Masks = Mapping[int, Mask] | Iterable[tuple[int, Mask]]
"""Masks [H, W] by object id. An iterable of pairs is read once, so few are in memory at a time."""

MAX_IDS = 255
"""The greatest object id of a palette PNG."""

SOFTWARE = "sam2_fast"
"""The entry `Software` of every PNG that this library writes."""


def save_mask(path: str | os.PathLike[str], mask: Mask) -> None:
    """Write one mask [H, W] as a palette PNG: 0 is background (black), 1 the object (dark red)."""
    _save_indices(Path(path), as_mask(mask).astype(np.uint8))


def save_davis(path: str | os.PathLike[str], masks: Masks) -> None:
    """Write all objects of one frame as one palette PNG of object ids.

    masks: {id: mask [H, W]} or pairs (id, mask). The lower id is on top of overlaps.
    Raises ValueError for ids outside 1..255.
    """
    labels: npt.NDArray[np.uint8] | None = None
    for object_id, mask in _with_integers(masks):
        if not 1 <= object_id <= MAX_IDS:
            raise ValueError(
                f"masks: a palette PNG holds the ids 1 to {MAX_IDS}, got {object_id}; write one "
                f"PNG per object"
            )
        pixels = as_mask(mask)
        if labels is None:
            labels = np.zeros(pixels.shape, dtype=np.uint8)
        labels[pixels & ((labels == 0) | (labels > object_id))] = object_id
    if labels is None:
        raise ValueError(
            "masks: expected at least one object; write an all-False mask for an empty frame"
        )
    _save_indices(Path(path), labels)


def as_mask(mask: npt.NDArray[Any]) -> Mask:
    """One mask [H, W] as bool. Raises ValueError for another shape, and for soft values."""
    pixels = as_bool(mask)
    if pixels.ndim != 2 or 0 in pixels.shape:
        raise ValueError(f"mask: expected [H, W] with at least one pixel, got {[*pixels.shape]}")
    return pixels


def pairs(masks: Masks) -> Iterator[tuple[int, Mask]]:
    """Masks as pairs (id, mask).

    Raises ValueError for an id that is not an integer of 0 or more; ids become names of folders.
    """
    for object_id, mask in _with_integers(masks):
        if object_id < 0:
            raise ValueError(f"masks: expected ids of 0 or more, got {object_id}")
        yield object_id, mask


def _with_integers(masks: Masks) -> Iterator[tuple[int, Mask]]:
    for object_id, mask in masks.items() if isinstance(masks, Mapping) else masks:
        try:
            number = operator.index(object_id)
        except TypeError as error:
            raise ValueError(f"masks: expected integers as ids, got {object_id!r:.200}") from error
        yield number, mask


def png_info() -> PngInfo:
    """The text entries of every PNG that this library writes."""
    info = PngInfo()
    info.add_text("Software", SOFTWARE)
    return info


def _save_indices(path: Path, indices: npt.NDArray[np.uint8]) -> None:
    image = Image.fromarray(indices)
    image.putpalette(DAVIS_PALETTE)
    with whole_file(path) as beside:
        image.save(beside, format="PNG", pnginfo=png_info())
