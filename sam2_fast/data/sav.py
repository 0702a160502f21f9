"""SA-V annotations: `<video>_manual.json` and `_auto.json`, masks as COCO run lengths, one list of
objects for each annotated frame.
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
    """The masks of one file. Frames are numbered as the annotations are: `frame` is frame
    `4 * frame` of the video.
    """

    def __init__(self, path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> None:
        self.path, self._max_pixels = Path(path), max_pixels
        try:
            found: Any = json.loads(self.path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"annotations {path}: not JSON ({error})") from error
        masklets = found.get("masklet") if isinstance(found, dict) else None
        if not isinstance(masklets, list) or not all(isinstance(frame, list) for frame in masklets):
            raise ValueError(
                f"annotations {path}: expected SA-V's keys, of them `masklet`: a list of frames, "
                f"each a list of run lengths"
            )
        ids = found.get("masklet_id", list(range(len(masklets[0]) if masklets else 0)))
        if any(len(frame) != len(ids) for frame in masklets):
            raise ValueError(
                f"annotations {path}: expected {len(ids)} objects on every frame, as `masklet_id` "
                f"says"
            )
        self.video_id = str(found.get("video_id", self.path.stem))
        self.ids = [int(i) for i in ids]
        self.height, self.width = (
            int(found.get("video_height", 0)),
            int(found.get("video_width", 0)),
        )
        self._masklets = masklets

    def __len__(self) -> int:
        return len(self._masklets)

    def read(self, frame: int) -> dict[int, Mask]:
        """The masks [H, W] of the objects of one annotated frame; absent ones are empty. Raises
        IndexError outside the annotations.
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
        """The number, in the video of 24 frames a second, of an annotated frame."""
        return STEP * frame
