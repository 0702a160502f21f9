"""SA-1B: `sa_<n>.jpg` with `sa_<n>.json`, which holds masks as COCO run lengths."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sam2_fast.data.folders import Mask
from sam2_fast.io.limits import MAX_PIXELS
from sam2_fast.io.rle import decode_rle


class Sa1bAnnotations:
    """The masks of one image."""

    def __init__(self, path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> None:
        self.path = Path(path)
        self._max_pixels = max_pixels
        try:
            document: Any = json.loads(self.path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"annotations {path}: not JSON ({error})") from error
        masks = document.get("annotations") if isinstance(document, dict) else None
        if not isinstance(masks, list) or not all(
            isinstance(m, dict) and "segmentation" in m for m in masks
        ):
            raise ValueError(
                f"annotations {path}: expected SA-1B's keys, with `annotations` a list of objects "
                f"that have a `segmentation`"
            )
        self._masks = masks

    def __len__(self) -> int:
        return len(self._masks)

    def __iter__(self) -> Iterator[Mask]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, number: int) -> Mask:
        """The mask [H, W] of number `number`."""
        return decode_rle(self._masks[number]["segmentation"], max_pixels=self._max_pixels)
