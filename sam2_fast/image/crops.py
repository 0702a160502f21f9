"""Grids of clicks, overlapping crops of an image, and coordinates of crops in their image.

Source: official `utils/amg.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_fast.ops.core.transfer import upload, upload_numbers


def build_point_grid(n_per_side: int) -> npt.NDArray[np.float64]:
    """Centres (x, y) of n x n cells of the unit square, row by row: [n * n, 2]."""
    offset = 1 / (2 * n_per_side)
    centres = np.linspace(offset, 1 - offset, n_per_side)
    x, y = np.meshgrid(centres, centres)
    return np.stack([x, y], axis=-1).reshape(-1, 2)


def build_all_layer_point_grids(
    n_per_side: int, n_layers: int, scale_per_layer: int
) -> list[npt.NDArray[np.float64]]:
    """One grid for each crop layer; layer 0 is the whole image.

    Every grid has `scale_per_layer` times fewer points on a side than the previous one.
    """
    sides = [int(n_per_side / scale_per_layer**layer) for layer in range(n_layers + 1)]
    if min(sides) < 1:
        raise ValueError(
            f"points_per_side {n_per_side} leaves no point in crop layer {sides.index(0)} at "
            f"downscale factor {scale_per_layer}"
        )
    return [build_point_grid(side) for side in sides]


def generate_crop_boxes(
    im_size: Sequence[int], n_layers: int, overlap_ratio: float
) -> tuple[list[list[int]], list[int]]:
    """Boxes (x0, y0, x1, y1) of the image and its overlapping crops, and the layer of each.

    im_size: (height, width). Layer i = 1 .. n_layers has 4**i crops, column by column. Crops
        without pixels, of images of a few pixels, are left out.
    overlap_ratio: overlap in layer 1 as a fraction of the short side; halved with every layer.
    """
    height, width = im_size
    crops = [[0, 0, width, height]]
    layers = [0]
    for layer in range(1, n_layers + 1):
        count = 2**layer
        overlap = int(overlap_ratio * min(height, width) * (2 / count))
        crop_w, crop_h = (
            math.ceil((overlap * (count - 1) + side) / count) for side in (width, height)
        )
        for column, row in product(range(count), repeat=2):
            x0, y0 = column * (crop_w - overlap), row * (crop_h - overlap)
            if x0 < width and y0 < height:
                crops.append([x0, y0, min(x0 + crop_w, width), min(y0 + crop_h, height)])
                layers.append(layer)
    return crops, layers


def is_box_near_crop_edge(
    boxes: Tensor, crop_box: Sequence[int], orig_box: Sequence[int], atol: float = 20.0
) -> Tensor:
    """Whether boxes have a side near an edge of the crop that is no edge of the image: [N] bool.

    boxes: [N, 4] in pixels of the crop. atol: distance that is near, in pixels.
    """
    crop, image = (upload_numbers(box, torch.float32, boxes.device) for box in (crop_box, orig_box))
    in_image = uncrop_boxes_xyxy(boxes, crop_box).float()
    return (((in_image - crop).abs() <= atol) & ~((in_image - image).abs() <= atol)).any(1)


def uncrop_boxes_xyxy(boxes: Tensor, crop_box: Sequence[int]) -> Tensor:
    """boxes: [..., 4] in pixels of a crop -> in pixels of the image."""
    x0, y0 = crop_box[:2]
    return boxes + upload(torch.tensor([x0, y0, x0, y0]), boxes.device)


def uncrop_points(points: Tensor, crop_box: Sequence[int]) -> Tensor:
    """points: [..., 2] in pixels of a crop -> in pixels of the image."""
    return points + upload(torch.tensor(list(crop_box[:2])), points.device)


def uncrop_masks(masks: Tensor, crop_box: Sequence[int], orig_h: int, orig_w: int) -> Tensor:
    """masks: [..., h, w] of a crop -> [..., orig_h, orig_w], 0 outside the crop."""
    x0, y0, x1, y1 = crop_box
    if (x0, y0, x1, y1) == (0, 0, orig_w, orig_h):
        return masks
    return F.pad(masks, (x0, orig_w - x1, y0, orig_h - y1), value=0)
