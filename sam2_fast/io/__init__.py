"""Read and write images, videos and masks, and convert pixels to model input.

This package does not depend on the models.
"""

from __future__ import annotations

from sam2_fast.io.frames import FrameGoneError, FrameSource
from sam2_fast.io.images import (
    as_rgb,
    as_rgb_uint8,
    depth_note,
    image_orientation,
    load_image,
)
from sam2_fast.io.limits import MAX_FRAMES, MAX_PIXELS
from sam2_fast.io.mask_files import read_mask_file
from sam2_fast.io.mask_writers import FrameLabel
from sam2_fast.io.masks import (
    DAVIS_PALETTE,
    load_mask,
    load_masks_json,
    save_davis,
    save_mask,
    to_detections,
)
from sam2_fast.io.rle import area_from_rle, compress_rle, decode_rle, encode_rle, mask_to_rle
from sam2_fast.io.transforms import normalize_frame, resize_frame, resize_image, resize_images
from sam2_fast.io.video import open_video

__all__ = [
    "DAVIS_PALETTE",
    "MAX_FRAMES",
    "MAX_PIXELS",
    "FrameGoneError",
    "FrameLabel",
    "FrameSource",
    "area_from_rle",
    "as_rgb",
    "as_rgb_uint8",
    "compress_rle",
    "decode_rle",
    "depth_note",
    "encode_rle",
    "image_orientation",
    "load_image",
    "load_mask",
    "load_masks_json",
    "mask_to_rle",
    "normalize_frame",
    "open_video",
    "read_mask_file",
    "resize_frame",
    "resize_image",
    "resize_images",
    "save_davis",
    "save_mask",
    "to_detections",
]
