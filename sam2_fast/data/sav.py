"""SA-V annotations: `<video>_manual.json` and `<video>_auto.json`, masks as COCO run lengths.

Each annotated frame has a list with one mask per object.
"""

from __future__ import annotations

import os
from pathlib import Path

from sam2_fast.data.sa1b import checked_rle, size_of
from sam2_fast.io.json_files import read_json
from sam2_fast.io.limits import MAX_JSON_BYTES, MAX_PIXELS, MAX_TOTAL_PIXELS, check_total
from sam2_fast.io.rle_table import RleTable, pixels_of

STEP = 4
"""Frames of a video (24 a second) for each annotated one (6 a second)."""


class SavAnnotations:
    """The masks of one file. Annotated frame `frame` is frame `4 * frame` of the video.

    `height` and `width` are those of the video, or 0 if the file does not tell.
    max_pixels, max_total_pixels: limits of one mask, and of all masks of a frame together.
    max_bytes: limit of the file.
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
        self._max_total_pixels = max_total_pixels
        document = read_json(path, "annotations", max_bytes=max_bytes)
        masklets = document.get("masklet") if isinstance(document, dict) else None
        if not isinstance(masklets, list) or not all(isinstance(frame, list) for frame in masklets):
            raise ValueError(
                f"annotations {path}: expected SA-V's keys, with `masklet` a list of frames, each "
                f"a list of run lengths"
            )
        ids = document.get("masklet_id")
        if ids is None:
            ids = list(range(len(masklets[0]) if masklets else 0))
        if not isinstance(ids, list) or not all(_is_number(i) for i in ids):
            raise ValueError(
                f"annotations {path}: masklet_id: expected a list of whole numbers, got "
                f"{ids!r:.200}"
            )
        if any(len(frame) != len(ids) for frame in masklets):
            raise ValueError(
                f"annotations {path}: expected {len(ids)} objects on every frame, one for each "
                f"`masklet_id`"
            )
        self.video_id = str(document.get("video_id") or self.path.stem)
        self.ids = [int(i) for i in ids]
        self._size = size_of(document, "video_height", "video_width")
        self.height, self.width = self._size or (0, 0)
        self._masklets = masklets
        every = (rle for frame in masklets for rle in frame)
        self._other = next((rle for rle in every if rle is not None), None)

    def __len__(self) -> int:
        return len(self._masklets)

    def read(self, frame: int) -> RleTable:
        """The masks [H, W] of the objects of one annotated frame; absent objects have empty masks.

        A mask is decoded each time it is read from the mapping that is returned. A mask that is
        null is empty, and has the size of the video or of another mask.
        Raises IndexError if the frame is outside the annotations, and ValueError, which names the
        file, for a damaged mask and above a limit.
        """
        if not 0 <= frame < len(self):
            raise IndexError(
                f"annotations {self.path}: frame {frame} is out of range, {len(self)} are annotated"
            )
        rles = {}
        for i, rle in zip(self.ids, self._masklets[frame], strict=True):
            label = f"annotations {self.path}: object {i} on frame {frame}"
            rles[i] = checked_rle(rle, self._size, self._other, label, self._max_pixels)
        total = sum(map(pixels_of, rles.values()))
        check_total(total, self._max_total_pixels, f"annotations {self.path}: frame {frame}")
        return RleTable(rles)

    @staticmethod
    def video_frame(frame: int) -> int:
        """The number of an annotated frame in the video of 24 frames per second."""
        return STEP * frame


def _is_number(value: object) -> bool:
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    return is_integer or (isinstance(value, float) and value.is_integer())
