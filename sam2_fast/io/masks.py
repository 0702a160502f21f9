"""Read and write masks: one PNG per object, DAVIS palette PNG, or JSON with COCO run lengths.

Also converts masks to `supervision.Detections`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from sam2_fast.io.json_files import read_json
from sam2_fast.io.limits import MAX_JSON_BYTES, MAX_PIXELS, MAX_TOTAL_PIXELS, check_total
from sam2_fast.io.mask_files import read_mask_file
from sam2_fast.io.mask_png import Mask, save_davis, save_mask
from sam2_fast.io.mask_writers import DavisWriter, JsonWriter, MaskWriter, PngWriter, describe
from sam2_fast.io.palette import DAVIS_PALETTE
from sam2_fast.io.rle import Rle, area_from_rle
from sam2_fast.io.rle_table import RleTable, pixels_of
from sam2_fast.ops.core.mask_values import as_bool

__all__ = [
    "DAVIS_PALETTE",
    "DavisWriter",
    "JsonWriter",
    "Mask",
    "MaskWriter",
    "PngWriter",
    "RleTable",
    "describe",
    "load_mask",
    "load_masks_json",
    "save_davis",
    "save_mask",
    "to_detections",
]


def load_mask(
    path: str | os.PathLike[str],
    object_id: int | None = None,
    *,
    max_pixels: int = MAX_PIXELS,
    upright: bool = False,
) -> Mask:
    """Read a mask file of any kind as [H, W] bool (docs/files.md, section "Masks").

    object_id: the id to select in a palette or grey image of ids; None selects all objects. In a
        file of only 0 and 255, the object is 1.
    upright: apply the orientation tag (EXIF); without it, the stored pixels are read.
    Raises FileNotFoundError, or ValueError, which names the file.
    """
    file = read_mask_file(path, max_pixels=max_pixels, upright=upright)
    return file.mask if object_id is None else file.select(object_id)


def load_masks_json(
    path: str | os.PathLike[str],
    *,
    max_pixels: int = MAX_PIXELS,
    max_total_pixels: int = MAX_TOTAL_PIXELS,
    max_bytes: int = MAX_JSON_BYTES,
) -> dict[int, RleTable]:
    """Read a file of `JsonWriter` as {frame: {object id: mask [H, W]}}.

    The masks of a frame are a mapping that decodes a mask each time it is read.
    max_pixels, max_total_pixels: limits of one mask, and of all masks together.
    max_bytes: limit of the file.
    Raises FileNotFoundError, or ValueError, which names the file, for any other file, for damaged
    run lengths, for a mask that appears twice, and above a limit.
    """
    try:
        document = read_json(path, "masks", max_bytes=max_bytes)
        if document["format"] != "sam2_fast.masks" or document["version"] != 1:
            raise KeyError("format")
        rows = [
            (entry["frame"], item["id"], item["segmentation"])
            for entry in document["frames"]
            for item in entry["objects"]
        ]
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"masks {path}: not a sam2_fast.masks file of version 1") from error
    frames: dict[int, dict[int, Rle]] = {}
    total = 0
    for frame, object_id, segmentation in rows:
        name = f"masks {path}: object {object_id!r:.50}, frame {frame!r:.50}"
        if type(frame) is not int or type(object_id) is not int:
            raise ValueError(f"{name}: expected whole numbers")
        if object_id in frames.setdefault(frame, {}):
            raise ValueError(f"{name}: has two masks; remove one of them")
        try:
            area_from_rle(segmentation, max_pixels=max_pixels)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        total += pixels_of(segmentation)
        check_total(total, max_total_pixels, f"masks {path}")
        frames[frame][object_id] = segmentation
    return {frame: RleTable(rles) for frame, rles in frames.items()}


def to_detections(
    masks: npt.NDArray[Any] | Tensor,
    object_ids: Sequence[int] | None = None,
    scores: Sequence[float] | None = None,
) -> Any:
    """`supervision.Detections` of masks, with boxes (x0, y0, x1, y1) in pixels.

    masks: [N, H, W], an array or a tensor: bool, integers, 0 and 1, or logits, which are above 0
        on the object and negative elsewhere. Empty masks are left out. Raises ValueError for
        numbers that are neither, such as probabilities.
    object_ids: become tracker ids.
    scores: become confidences.
    Needs `pip install supervision`.
    """
    try:
        import supervision
    except ImportError as error:
        raise ImportError("to_detections needs supervision: pip install supervision") from error
    binary = _shown(masks)
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


def _shown(masks: npt.NDArray[Any] | Tensor) -> Mask:
    """Masks [N, H, W] as bool. Floating point with negative values are logits."""
    if isinstance(masks, Tensor):
        tensor = masks.detach().cpu()
        pixels = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    else:
        pixels = np.asarray(masks)
    if pixels.ndim != 3:
        raise ValueError(f"masks: expected [N, H, W], got {[*pixels.shape]}")
    if pixels.dtype.kind == "f" and (pixels < 0).any() and not np.isnan(pixels).any():
        return np.asarray(pixels > 0)
    return as_bool(pixels, "masks")
