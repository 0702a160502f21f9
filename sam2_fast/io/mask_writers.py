"""Writers of the masks of many frames: PNG files, or one JSON file with COCO run lengths."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from sam2_fast.files.atomic import PendingFile
from sam2_fast.io.json_files import to_json
from sam2_fast.io.mask_png import Mask, Masks, as_mask, pairs, save_davis, save_mask
from sam2_fast.io.rle import encode_rle


class FrameLabel(NamedTuple):
    """Which frame of a video: its position, the source's own name of it, and its time.

    seconds: from the start of the video; None if the source has no clock.
    """

    frame: int
    name: str
    seconds: float | None = None


class MaskWriter(Protocol):
    """Writes the frames of a result in any order.

    frame: a position, or a label with the source's own name of the frame.
    masks: {id: mask [H, W] bool}, or pairs (id, mask), of which few are in memory at a time.
    `close` completes the files; with `complete=False`, they say that frames are missing. `abort`
    leaves no incomplete file.
    """

    def write(self, frame: int | FrameLabel, masks: Masks) -> None: ...
    def close(self, complete: bool = True) -> None: ...
    def abort(self) -> None: ...


class PngWriter:
    """Writes `<directory>/<object id, 3 digits>/<frame>.png` with `save_mask`.

    There is one file per object and frame. The name of a frame is that of its label, or its
    position with five digits.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._directory = Path(directory)

    def write(self, frame: int | FrameLabel, masks: Masks) -> None:
        name = frame_file(frame)
        for object_id, mask in pairs(masks):
            save_mask(self._directory / f"{object_id:03d}" / name, mask)

    def remove(self, frame: int | FrameLabel) -> None:
        """Delete the files of one frame."""
        for folder in self._directory.glob("*/"):
            (folder / frame_file(frame)).unlink(missing_ok=True)

    def close(self, complete: bool = True) -> None:
        """Do nothing: every file is complete already."""

    def abort(self) -> None:
        """Do nothing: the files written so far are complete and stay."""


class DavisWriter(PngWriter):
    """Writes `<directory>/<frame>.png` with `save_davis`, one file per frame."""

    def write(self, frame: int | FrameLabel, masks: Masks) -> None:
        save_davis(self._directory / frame_file(frame), masks)

    def remove(self, frame: int | FrameLabel) -> None:
        """Delete the file of one frame."""
        (self._directory / frame_file(frame)).unlink(missing_ok=True)


class JsonWriter:
    """Writes one JSON file of COCO run lengths, with one line per frame.

    Frames are written as they arrive; `close` moves the complete file to its path.

      {"format": "sam2_fast.masks", "version": 1, "height": H, "width": W, "frames": [
        {"frame": 0, "name": "00000", "seconds": 0.0, "objects": [
          {"id": 1, "area": 25, "bbox": [x, y, w, h],
           "segmentation": {"size": [H, W], "counts": "..."}}]}], "complete": true}

    name, seconds: of the label of a frame; without a label they are left out.
    area, bbox: pixels; `bbox` is [0, 0, 0, 0] for an empty mask.
    complete: false if frames are missing.
    If a frame cannot be written, for example to a full disk, the frames before it can still be
    closed.
    """

    def __init__(self, path: str | os.PathLike[str], height: int, width: int) -> None:
        self._pending = PendingFile(path)
        self._file = self._pending.temporary.open("wb", buffering=0)
        self._ends: list[int] = []
        header = {"format": "sam2_fast.masks", "version": 1, "height": height, "width": width}
        self._append(to_json(header)[:-1] + ', "frames": [')

    def write(self, frame: int | FrameLabel, masks: Masks) -> None:
        objects = ({"id": object_id, **describe(mask)} for object_id, mask in pairs(masks))
        self.write_row(to_json(frame_entry(frame, objects)))

    def write_row(self, row: str) -> None:
        """Append a frame as the JSON text of a `frame_entry`."""
        self._append(("\n" if len(self._ends) == 1 else ",\n") + row)

    @property
    def frames(self) -> int:
        """How many frames the file has."""
        return len(self._ends) - 1

    def keep(self, frames: int) -> None:
        """Drop all frames after the first `frames`."""
        if frames < self.frames:
            del self._ends[frames + 1 :]
            self._cut(self._ends[-1])

    def close(self, complete: bool = True) -> None:
        """Complete the file; with `complete=False`, frames that no longer fit are dropped."""
        while True:
            try:
                self._append(f'\n], "complete": {"true" if complete else "false"}}}\n')
                break
            except OSError:
                if complete or not self.frames:
                    raise
                self.keep(self.frames - 1)
        self._ends.pop()  # the end of the file is not a frame
        self._file.close()
        self._pending.commit()

    def abort(self) -> None:
        self._file.close()
        self._pending.discard()

    def _append(self, text: str) -> None:
        """Write text at the end of the file, or nothing of it."""
        data = memoryview(text.encode("ascii"))
        start = self._ends[-1] if self._ends else 0
        written = 0
        try:
            while written < len(data):
                written += self._file.write(data[written:]) or 0
        except OSError:
            self._cut(start)
            raise
        self._ends.append(start + written)

    def _cut(self, end: int) -> None:
        self._file.truncate(end)
        self._file.seek(end)


def frame_file(frame: int | FrameLabel) -> str:
    """The name of the PNG file of a frame.

    Raises ValueError for a number that is negative or no integer, and for a name with a folder.
    """
    if not isinstance(frame, FrameLabel):
        if not isinstance(frame, (int, np.integer)) or frame < 0:
            raise ValueError(f"frame: expected a number of 0 or more, or a label, got {frame!r}")
        return f"{frame:05d}.png"
    name = str(frame.name)
    if not name or any(character in name for character in "/\\\0"):
        raise ValueError(f"frame: expected a name without a folder, got {name!r:.200}")
    return f"{name}.png"


def frame_entry(frame: int | FrameLabel, objects: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The entry of a frame in `sam2_fast.masks`, with the objects in order of their ids.

    objects: `id` and the entries of `describe` of each object, in any order.
    """
    label = frame._asdict() if isinstance(frame, FrameLabel) else {"frame": frame}
    return {**label, "objects": sorted(objects, key=lambda entry: int(entry["id"]))}


def describe(mask: Mask, *, with_mask: bool = True) -> dict[str, Any]:
    """Area, bounding box and run lengths of one mask [H, W], ready for JSON.

    with_mask: False leaves out the run lengths.
    """
    pixels = as_mask(mask)
    rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
    box = [0, 0, 0, 0]
    if rows.size:
        box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
    entry: dict[str, Any] = {
        "area": int(np.count_nonzero(pixels)),
        "bbox": [int(side) for side in box],
    }
    return entry | ({"segmentation": encode_rle(pixels, text=True)} if with_mask else {})
