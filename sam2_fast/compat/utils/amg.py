"""`sam2.utils.amg`: helpers of automatic mask generation under their official names."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from sam2_fast.image.crops import build_all_layer_point_grids as build_all_layer_point_grids
from sam2_fast.image.crops import build_point_grid as build_point_grid
from sam2_fast.image.crops import generate_crop_boxes as generate_crop_boxes
from sam2_fast.image.crops import is_box_near_crop_edge as is_box_near_crop_edge
from sam2_fast.image.crops import uncrop_boxes_xyxy as uncrop_boxes_xyxy
from sam2_fast.image.crops import uncrop_masks as uncrop_masks
from sam2_fast.image.crops import uncrop_points as uncrop_points
from sam2_fast.image.mask_table import MaskData as MaskData
from sam2_fast.image.mask_table import area_from_rle as area_from_rle
from sam2_fast.image.mask_table import batch_iterator as batch_iterator
from sam2_fast.image.mask_table import box_xyxy_to_xywh as box_xyxy_to_xywh
from sam2_fast.image.mask_table import rle_to_mask as rle_to_mask
from sam2_fast.io.rle import Rle, compress_rle, mask_to_rle
from sam2_fast.masks import boxes, stability_score, without_small_regions
from sam2_fast.ops.core.mask_values import bool_tensor


def mask_to_rle_pytorch(tensor: Tensor) -> list[Rle]:
    """Plain run lengths of N masks [N, H, W] bool; see `io.rle.mask_to_rle`."""
    return mask_to_rle(tensor)


def coco_encode_rle(uncompressed_rle: Any) -> Rle:
    """COCO's compressed form of plain run lengths, with str counts; needs no pycocotools."""
    return compress_rle(uncompressed_rle)


def calculate_stability_score(
    masks: Tensor, mask_threshold: float, threshold_offset: float
) -> Tensor:
    """IoU [...] of the masks at `mask_threshold` plus and minus `threshold_offset`.

    masks: [..., H, W] logits.
    """
    return stability_score(masks, mask_threshold, threshold_offset)


def batched_mask_to_box(masks: Tensor) -> Tensor:
    """Boxes [..., 4] as (x0, y0, x1, y1), last pixel included; zeros for an empty mask.

    masks: [..., H, W] bool.
    """
    return boxes(masks)


def remove_small_regions(
    mask: npt.NDArray[Any], area_thresh: float, mode: str
) -> tuple[npt.NDArray[np.bool_], bool]:
    """The mask [H, W] without small holes or islands, and whether it changed.

    mode: "holes" or "islands". Regions of fewer than `area_thresh` pixels are removed. Components
        are 8-connected. If every island is small, the largest one stays (the first of them if
        several are equally large). Needs no OpenCV.
    """
    if mode not in ("holes", "islands"):
        raise ValueError(f"mode: expected 'holes' or 'islands', got {mode!r}")
    cleaned, changed = without_small_regions(bool_tensor(mask)[None], area_thresh, mode)
    return cleaned[0].numpy(), bool(changed[0])
