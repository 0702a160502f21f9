"""SA-V annotations: `<video>_manual.json` and `<video>_auto.json`, masks as COCO run lengths.

Each annotated frame has a list with one mask per object.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from sam2_fast.data.folders import Mask
from sam2_fast.io.limits import MAX_PIXELS
from sam2_fast.io.rle import decode_rle

STEP = 4
"""Frames of a video (24 a second) for each annotated one (6 a second)."""


class SavAnnotations:
    """The masks of one file. Annotated frame `frame` is frame `4 * frame` of the video."""

    def __init__(self, path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> None:
        self.path = Path(path)
        self._max_pixels = max_pixels
        try:
            document: Any = json.loads(self.path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"annotations {path}: not JSON ({error})") from error
        masklets = document.get("masklet") if isinstance(document, dict) else None
        if not isinstance(masklets, list) or not all(isinstance(frame, list) for frame in masklets):
            raise ValueError(
                f"annotations {path}: expected SA-V's keys, with `masklet` a list of frames, each "
                f"a list of run lengths"
            )
        ids = document.get("masklet_id", list(range(len(masklets[0]) if masklets else 0)))
        if any(len(frame) != len(ids) for frame in masklets):
            raise ValueError(
                f"annotations {path}: expected {len(ids)} objects on every frame, one for each "
                f"`masklet_id`"
            )
        self.video_id = str(document.get("video_id", self.path.stem))
        self.ids = [int(i) for i in ids]
        self.height = int(document.get("video_height", 0))
        self.width = int(document.get("video_width", 0))
        self._masklets = masklets

    def __len__(self) -> int:
        return len(self._masklets)

    def read(self, frame: int) -> dict[int, Mask]:
        """The masks [H, W] of the objects of one annotated frame; absent objects have empty masks.

        Raises IndexError if the frame is outside the annotations.
        """
        if not 0 <= frame < len(self):
            raise IndexError(
                f"annotations {self.path}: frame {frame} is out of range, {len(self)} are annotated"
            )
        rles = self._masklets[frame]
        return {
            i: decode_rle(rle, max_pixels=self._max_pixels)
            for i, rle in zip(self.ids, rles, strict=True)
        }

    @staticmethod
    def video_frame(frame: int) -> int:
        """The number of an annotated frame in the video of 24 frames per second."""
        return STEP * frame
