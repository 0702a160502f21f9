"""Removal of duplicates and of small regions from tables of masks."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sam2_fast.image.decoding import ELEMENTS_PER_CALL
from sam2_fast.image.mask_table import MaskData, rle_to_mask
from sam2_fast.io.rle import mask_to_rle
from sam2_fast.masks import boxes as mask_boxes
from sam2_fast.masks import without_small_regions
from sam2_fast.ops.core.lookups import LookedUp
from sam2_fast.ops.core.transfer import upload
from sam2_fast.ops.nms import batched_nms

BATCHED_NMS = LookedUp(globals(), "batched_nms")


def unique_rows(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Indices of the boxes that remain after non-maximum suppression, computed on the host.

    The boxes are few, so that kernels of a GPU would not pay off.
    """
    table = torch.cat(
        [boxes.double(), scores.to(boxes.device, torch.float64)[:, None]], dim=1
    ).cpu()
    return batched_nms(
        table[:, :4].float(),
        table[:, 4].to(scores.dtype),
        torch.zeros(len(table)),
        iou_threshold=threshold,
    )


def remove_small_regions(mask_data: MaskData, min_area: float, nms_thresh: float) -> MaskData:
    """Remove holes and specks of fewer than `min_area` pixels, then masks that became duplicates.

    mask_data: its columns "rles" and "boxes" are changed; the work is done on the device of the
        boxes. Masks without changes are preferred to changed ones.
    """
    rles = mask_data["rles"]
    if not rles:
        return mask_data
    boxes, scores = [], []
    height, width = rles[0]["size"]
    rows = max(1, ELEMENTS_PER_CALL // (height * width))
    for start in range(0, len(rles), rows):
        pixels = np.stack([rle_to_mask(rle) for rle in rles[start : start + rows]])
        masks = upload(torch.from_numpy(pixels), torch.as_tensor(mask_data["boxes"]).device)
        masks, filled = without_small_regions(masks, min_area, "holes")
        masks, cleared = without_small_regions(masks, min_area, "islands")
        changed = filled | cleared
        boxes.append(mask_boxes(masks))
        scores.append((~changed).float())
        indices = changed.nonzero()[:, 0].tolist()
        for i, rle in zip(indices, mask_to_rle(masks[changed]), strict=True):
            rles[start + i] = rle
            mask_data["boxes"][start + i] = boxes[-1][i]
    mask_data.filter(unique_rows(torch.cat(boxes), torch.cat(scores), nms_thresh))
    return mask_data
