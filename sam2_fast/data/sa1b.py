"""SA-1B: `sa_<n>.jpg` with `sa_<n>.json`, which holds masks as COCO run lengths."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np

from sam2_fast.data.folders import Mask
from sam2_fast.io.json_files import read_json
from sam2_fast.io.limits import MAX_PIXELS, check_pixels
from sam2_fast.io.rle import Rle, decode_rle


class Sa1bAnnotations:
    """The masks of one image."""

    def __init__(self, path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> None:
        self.path = Path(path)
        self._max_pixels = max_pixels
        document = read_json(path, "annotations")
        masks = document.get("annotations") if isinstance(document, dict) else None
        if not isinstance(masks, list) or not all(
            isinstance(m, dict) and "segmentation" in m for m in masks
        ):
            raise ValueError(
                f"annotations {path}: expected SA-1B's keys, with `annotations` a list of objects "
                f"that have a `segmentation`"
            )
        self._masks = masks
        image = document.get("image")
        self._size = size_of(image, "height", "width") if isinstance(image, dict) else None

    def __len__(self) -> int:
        return len(self._masks)

    def __iter__(self) -> Iterator[Mask]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, number: int) -> Mask:
        """The mask [H, W] of number `number`; null is an empty mask of the image's size.

        Raises ValueError, which names the file, for a damaged mask.
        """
        rles = [mask["segmentation"] for mask in self._masks]
        label = f"annotations {self.path}: mask {number}"
        return mask_of(rles[number], self._size, rles, label, self._max_pixels)


def mask_of(
    rle: Rle | None,
    size: tuple[int, int] | None,
    others: Iterable[Rle | None],
    label: str,
    max_pixels: int = MAX_PIXELS,
) -> Mask:
    """The mask [H, W] of run lengths; null (None) is an empty mask.

    size: (height, width) of an empty mask, or None: that of the first of `others`.
    Raises ValueError, which starts with `label`, for damaged run lengths and if no size is known.
    """
    try:
        if rle is not None:
            return decode_rle(rle, max_pixels=max_pixels)
        known = next((other for other in others if other is not None), None)
        if size is None and known is not None:
            size = decode_rle(known, max_pixels=max_pixels).shape
        if size is None:
            raise ValueError("is null, and the file has neither a size nor another mask")
        check_pixels(size[1], size[0], max_pixels, "its size")
        return np.zeros(size, dtype=bool)
    except ValueError as error:
        raise ValueError(f"{label}: {error}") from error


def size_of(document: dict[str, Any], height: str, width: str) -> tuple[int, int] | None:
    """Height and width of a JSON object, by their keys; None unless both are numbers above 0."""
    sides = (document.get(height), document.get(width))
    if not all(isinstance(side, (int, float)) and 1 <= side < 2**31 for side in sides):
        return None
    return int(cast(float, sides[0])), int(cast(float, sides[1]))
