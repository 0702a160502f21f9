"""Read and write masks: one PNG per object, DAVIS palette PNG, or JSON with COCO run lengths.

Also converts masks to `supervision.Detections`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sam2_fast.io.images import open_image
from sam2_fast.io.limits import MAX_PIXELS
from sam2_fast.io.mask_png import DAVIS_PALETTE, Mask, save_davis, save_mask
from sam2_fast.io.mask_writers import DavisWriter, JsonWriter, MaskWriter, PngWriter, describe
from sam2_fast.io.rle import decode_rle

__all__ = [
    "DAVIS_PALETTE",
    "DavisWriter",
    "JsonWriter",
    "Mask",
    "MaskWriter",
    "PngWriter",
    "describe",
    "load_mask",
    "load_masks_json",
    "save_davis",
    "save_mask",
    "to_detections",
]


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
