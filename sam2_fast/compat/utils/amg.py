"""`sam2.utils.amg`: helpers of automatic mask generation under their official names."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
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


def mask_to_rle_pytorch(tensor: Tensor) -> list[Rle]:
    """[N, H, W] bool -> N plain run lengths; see `io.rle.mask_to_rle`."""
    return mask_to_rle(tensor)


def coco_encode_rle(uncompressed_rle: Any) -> Rle:
    """Plain run lengths -> COCO's compressed ones, counts as str; needs no pycocotools."""
    return compress_rle(uncompressed_rle)


def calculate_stability_score(
    masks: Tensor, mask_threshold: float, threshold_offset: float
) -> Tensor:
    """[..., H, W] logits -> [...]: IoU of the masks at `mask_threshold` + and
    - `threshold_offset`.
    """
    return stability_score(masks, mask_threshold, threshold_offset)


def batched_mask_to_box(masks: Tensor) -> Tensor:
    """[..., H, W] bool -> [..., 4] boxes (x0, y0, x1, y1), last pixel included; zeros for an empty
    mask.
    """
    return boxes(masks)


def remove_small_regions(
    mask: npt.NDArray[Any], area_thresh: float, mode: str
) -> tuple[npt.NDArray[np.bool_], bool]:
    """mask [H, W] without holes (mode "holes") or specks ("islands") of fewer than `area_thresh`
    pixels, and whether it changed.

    Components are 8-connected. Where every island is small, the largest stays (the first of them in
    a tie). Needs no OpenCV.
    """
    if mode not in ("holes", "islands"):
        raise ValueError(f"mode: expected 'holes' or 'islands', got {mode!r}")
    cleaned, changed = without_small_regions(
        torch.from_numpy(np.ascontiguousarray(mask).astype(bool))[None], area_thresh, mode
    )
    return cleaned[0].numpy(), bool(changed[0])
