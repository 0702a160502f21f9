"""Masks of a file that are decoded when they are read, because together they may be large."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from sam2_fast.io.rle import Rle, decode_rle

Mask = npt.NDArray[np.bool_]


class RleTable(Mapping[int, Mask]):
    """Masks [H, W] by object id. Each access decodes the mask; `dict(table)` decodes all of them.

    rles: valid run lengths by object id.
    """

    def __init__(self, rles: Mapping[int, Rle]) -> None:
        self._rles = dict(rles)

    def __getitem__(self, object_id: int) -> Mask:
        rle = self._rles[object_id]
        return decode_rle(rle, max_pixels=pixels_of(rle))

    def __iter__(self) -> Iterator[int]:
        return iter(self._rles)

    def __len__(self) -> int:
        return len(self._rles)

    def __contains__(self, object_id: object) -> bool:
        return object_id in self._rles

    def __repr__(self) -> str:
        return f"RleTable of the objects {[*self._rles]}"


def pixels_of(rle: Any) -> int:
    """Number of pixels of valid run lengths."""
    height, width = rle["size"]
    return int(height) * int(width)
