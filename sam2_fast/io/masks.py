"""Read and write masks: one PNG per object, DAVIS palette PNG, or JSON with COCO run lengths.

Also converts masks to `supervision.Detections`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from sam2_fast.atomic import PendingFile, whole_file
from sam2_fast.io.images import open_image
from sam2_fast.io.limits import MAX_PIXELS
from sam2_fast.io.rle import decode_rle, encode_rle

Mask = npt.NDArray[np.bool_]


def _voc_palette() -> bytes:
    """R, G, B of 256 colours.

    Bits 0, 1, 2 of an index become the top bits of red, green and blue; bits 3, 4, 5 become the
    next lower ones, and so on.
    """
    index = np.arange(256)[:, None]
    bits = sum(((index >> (3 * level + np.arange(3))) & 1) << (7 - level) for level in range(8))
    return np.asarray(bits, dtype=np.uint8).tobytes()


DAVIS_PALETTE = _voc_palette()
"""The palette of DAVIS and Pascal VOC: 768 bytes, R, G, B of 256 indices."""


def save_mask(path: str | os.PathLike[str], mask: Mask) -> None:
    """Write one mask [H, W] as a palette PNG: 0 is background (black), 1 the object (dark red)."""
    _save_indices(Path(path), _as_mask(mask).astype(np.uint8))


def save_davis(path: str | os.PathLike[str], masks: Mapping[int, Mask]) -> None:
    """Write all objects of one frame as one palette PNG of object ids.

    masks: {id: mask [H, W]}. Where objects overlap, the lower id is on top.
    Raises ValueError for ids outside 1..255.
    """
    if not masks:
        raise ValueError(
            "masks: expected at least one object; write an all-False mask for an empty frame"
        )
    labels = np.zeros(_as_mask(next(iter(masks.values()))).shape, dtype=np.uint8)
    for object_id in sorted(masks, reverse=True):
        if not 1 <= object_id <= 255:
            raise ValueError(
                f"masks: a palette PNG holds the ids 1 to 255, got {object_id}; write one PNG per "
                f"object"
            )
        labels[_as_mask(masks[object_id])] = object_id
    _save_indices(Path(path), labels)


def load_mask(
    path: str | os.PathLike[str], object_id: int | None = None, *, max_pixels: int = MAX_PIXELS
) -> Mask:
    """Read a mask file as [H, W] bool.

    object_id: the id to select in a palette or grey PNG; None selects all pixels that are not zero.
    """
    with open_image(path, max_pixels=max_pixels) as image:
        pixels = np.asarray(image)
    if object_id is not None and pixels.ndim != 2:
        raise ValueError(
            f"mask {path}: cannot select object {object_id}, the file has colours in place of ids"
        )
    flat = pixels if pixels.ndim == 2 else pixels[:, :, :3].any(axis=2)
    return np.asarray(flat == object_id if object_id is not None else flat != 0, dtype=bool)


class MaskWriter(Protocol):
    """Writes the frames of a result in any order.

    `close` completes the files; `abort` leaves no incomplete file.
    """

    def write(self, frame: int, masks: Mapping[int, Mask]) -> None: ...
    def close(self) -> None: ...
    def abort(self) -> None: ...


class PngWriter:
    """Writes `<directory>/<object id, 3 digits>/<frame, 5 digits>.png` with `save_mask`.

    There is one file per object and frame.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._directory = Path(directory)

    def write(self, frame: int, masks: Mapping[int, Mask]) -> None:
        for object_id, mask in masks.items():
            save_mask(self._directory / f"{object_id:03d}" / f"{frame:05d}.png", mask)

    def close(self) -> None:
        """Do nothing: every file is complete already."""

    def abort(self) -> None:
        """Do nothing: the files written so far are complete and stay."""


class DavisWriter(PngWriter):
    """Writes `<directory>/<frame, 5 digits>.png` with `save_davis`, one file per frame."""

    def write(self, frame: int, masks: Mapping[int, Mask]) -> None:
        save_davis(self._directory / f"{frame:05d}.png", masks)


class JsonWriter:
    """Writes one JSON file of COCO run lengths, with one line per frame.

    Frames are written as they arrive; `close` moves the complete file to its path.

      {"format": "sam2_fast.masks", "version": 1, "height": H, "width": W, "frames": [
        {"frame": 0, "objects": [{"id": 1, "area": 25, "bbox": [x, y, w, h],
          "segmentation": {"size": [H, W], "counts": "..."}}]}]}

    `area` and `bbox` are in pixels; `bbox` is [0, 0, 0, 0] for an empty mask.
    """

    def __init__(self, path: str | os.PathLike[str], height: int, width: int) -> None:
        self._pending = PendingFile(path)
        self._file = self._pending.temporary.open("w", encoding="ascii")
        self._file.write(
            f'{{"format": "sam2_fast.masks", "version": 1, "height": {height}, "width": {width}, '
            f'"frames": ['
        )
        self._separator = "\n"

    def write(self, frame: int, masks: Mapping[int, Mask]) -> None:
        objects = [{"id": object_id, **describe(mask)} for object_id, mask in masks.items()]
        self._file.write(self._separator + json.dumps({"frame": frame, "objects": objects}))
        self._separator = ",\n"

    def close(self) -> None:
        self._file.write("\n]}\n")
        self._file.close()
        self._pending.commit()

    def abort(self) -> None:
        self._file.close()
        self._pending.discard()


def describe(mask: Mask) -> dict[str, Any]:
    """Area, bounding box and run lengths of one mask [H, W], ready for JSON."""
    pixels = _as_mask(mask)
    rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
    empty = rows.size == 0
    box = (
        [0, 0, 0, 0]
        if empty
        else [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
    )
    return {
        "area": int(pixels.sum()),
        "bbox": [int(side) for side in box],
        "segmentation": encode_rle(pixels, text=True),
    }


def load_masks_json(path: str | os.PathLike[str]) -> dict[int, dict[int, Mask]]:
    """Read a file of `JsonWriter` as {frame: {object id: mask [H, W]}}.

    Raises ValueError for any other file.
    """
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
        if document["format"] != "sam2_fast.masks" or document["version"] != 1:
            raise KeyError("format")
        rows = [
            (entry["frame"], item["id"], item["segmentation"])
            for entry in document["frames"]
            for item in entry["objects"]
        ]
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"masks {path}: not a sam2_fast.masks file of version 1") from error
    frames: dict[int, dict[int, Mask]] = {}
    for frame, object_id, segmentation in rows:
        frames.setdefault(frame, {})[object_id] = decode_rle(segmentation)
    return frames


def to_detections(
    masks: npt.NDArray[Any],
    object_ids: Sequence[int] | None = None,
    scores: Sequence[float] | None = None,
) -> Any:
    """`supervision.Detections` of masks, with boxes (x0, y0, x1, y1) in pixels.

    masks: [N, H, W], bool, or logits that are above 0 on the object. Empty masks are left out.
    object_ids: become tracker ids.
    scores: become confidences.
    Needs `pip install supervision`.
    """
    try:
        import supervision
    except ImportError as error:
        raise ImportError("to_detections needs supervision: pip install supervision") from error
    binary = np.asarray(masks)
    if binary.ndim != 3:
        raise ValueError(f"masks: expected [N, H, W], got {[*binary.shape]}")
    binary = binary > 0
    for name, values in (("object_ids", object_ids), ("scores", scores)):
        if values is not None and len(values) != len(binary):
            raise ValueError(f"{name}: expected {len(binary)}, one per mask, got {len(values)}")
    nonempty = binary.any(axis=(1, 2))
    if not nonempty.any():
        return supervision.Detections.empty()
    return supervision.Detections(
        xyxy=supervision.mask_to_xyxy(binary[nonempty]).astype(np.float32),
        mask=binary[nonempty],
        tracker_id=None if object_ids is None else np.asarray(object_ids)[nonempty],
        confidence=None if scores is None else np.asarray(scores, dtype=np.float32)[nonempty],
    )


def _as_mask(mask: npt.NDArray[Any]) -> Mask:
    pixels = np.asarray(mask)
    if pixels.ndim != 2 or 0 in pixels.shape:
        raise ValueError(f"mask: expected [H, W] with at least one pixel, got {[*pixels.shape]}")
    return pixels.astype(bool, copy=False)


def _save_indices(path: Path, indices: npt.NDArray[np.uint8]) -> None:
    image = Image.fromarray(indices)
    image.putpalette(DAVIS_PALETTE)
    with whole_file(path) as beside:
        image.save(beside, format="PNG")
