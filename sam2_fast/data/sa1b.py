"""SA-1B: `sa_<n>.jpg` with `sa_<n>.json`, which holds masks as COCO run lengths."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from sam2_fast.data.folders import Mask
from sam2_fast.io.json_files import read_json
from sam2_fast.io.limits import (
    MAX_JSON_BYTES,
    MAX_PIXELS,
    MAX_TOTAL_PIXELS,
    check_pixels,
    check_total,
)
from sam2_fast.io.rle import Rle, area_from_rle, decode_rle


class Sa1bAnnotations:
    """The masks of one image, decoded when they are read.

    max_pixels, max_total_pixels: limits of one mask, and of all masks together.
    max_bytes: limit of the file.
    Raises FileNotFoundError, or ValueError, which names the file, if it is another file or above a
    limit.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        max_pixels: int = MAX_PIXELS,
        max_total_pixels: int = MAX_TOTAL_PIXELS,
        max_bytes: int = MAX_JSON_BYTES,
    ) -> None:
        self.path = Path(path)
        self._max_pixels = max_pixels
        document = read_json(path, "annotations", max_bytes=max_bytes)
        masks = document.get("annotations") if isinstance(document, dict) else None
        if not isinstance(masks, list) or not all(
            isinstance(m, dict) and "segmentation" in m for m in masks
        ):
            raise ValueError(
                f"annotations {path}: expected SA-1B's keys, with `annotations` a list of objects "
                f"that have a `segmentation`"
            )
        self._rles = [mask["segmentation"] for mask in masks]
        image = document.get("image")
        self._size = size_of(image, "height", "width") if isinstance(image, dict) else None
        self._other = next((rle for rle in self._rles if rle is not None), None)
        sizes = (self._size if rle is None else size_of_rle(rle) for rle in self._rles)
        total = sum(size[0] * size[1] for size in sizes if size is not None)
        check_total(total, max_total_pixels, f"annotations {path}")

    def __len__(self) -> int:
        return len(self._rles)

    def __iter__(self) -> Iterator[Mask]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, number: int) -> Mask:
        """The mask [H, W] of number `number`; null is an empty mask of the image's size.

        Raises ValueError, which names the file, for a damaged mask.
        """
        label = f"annotations {self.path}: mask {number}"
        rle = checked_rle(self._rles[number], self._size, self._other, label, self._max_pixels)
        return decode_rle(rle, max_pixels=self._max_pixels)


def checked_rle(
    rle: Rle | None,
    size: tuple[int, int] | None,
    other: Rle | None,
    label: str,
    max_pixels: int = MAX_PIXELS,
) -> Rle:
    """Run lengths after a check; null (None) becomes those of an empty mask.

    size: (height, width) of an empty mask, or None: that of `other`.
    Raises ValueError, which starts with `label`, for damaged run lengths and if no size is known.
    """
    try:
        if rle is not None:
            area_from_rle(rle, max_pixels=max_pixels)
            return rle
        if size is None and other is not None:
            area_from_rle(other, max_pixels=max_pixels)
            size = size_of_rle(other)
        if size is None:
            raise ValueError("is null, and the file has neither a size nor another mask")
        check_pixels(size[1], size[0], max_pixels, "its size")
        return {"size": [*size], "counts": [size[0] * size[1]]}
    except ValueError as error:
        raise ValueError(f"{label}: {error}") from error


def size_of_rle(rle: Any) -> tuple[int, int] | None:
    """Height and width of run lengths; None if they are damaged."""
    size = rle.get("size") if isinstance(rle, dict) else None
    if not isinstance(size, list) or len(size) != 2:
        return None
    return size_of({"height": size[0], "width": size[1]}, "height", "width")


def size_of(document: dict[str, Any], height: str, width: str) -> tuple[int, int] | None:
    """Height and width of a JSON object, by their keys; None unless both are numbers above 0."""
    sides = (document.get(height), document.get(width))
    if not all(isinstance(side, (int, float)) and 1 <= side < 2**31 for side in sides):
        return None
    return int(cast(float, sides[0])), int(cast(float, sides[1]))
