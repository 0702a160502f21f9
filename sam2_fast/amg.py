"""Helpers of automatic mask generation under their official names (official `utils/amg.py`): records, grids, crops, regions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from copy import copy, deepcopy
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_fast.io.rle import Rle, compress_rle, decode_rle, mask_to_rle
from sam2_fast.masks import boxes, stability_score
from sam2_fast.ops.connected_components import connected_components, small_components
from sam2_fast.ops.transfer import upload, upload_numbers

Column = Tensor | npt.NDArray[Any] | list[Any]


class MaskData:
    """A table of masks: columns (tensors, arrays or lists) of equal length, filtered and extended together."""

    def __init__(self, **columns: Column) -> None:
        self._stats: dict[str, Column] = {}
        for name, values in columns.items():
            self[name] = values

    def __setitem__(self, key: str, item: Column) -> None:
        if not isinstance(item, (list, np.ndarray, Tensor)):
            raise TypeError(f"MaskData {key!r}: expected a list, an array or a tensor, got {type(item).__name__}")
        self._stats[key] = item

    def __delitem__(self, key: str) -> None:
        del self._stats[key]

    def __getitem__(self, key: str) -> Any:
        return self._stats[key]

    def __contains__(self, key: object) -> bool:
        return key in self._stats

    def items(self) -> Any:
        """(name, column) pairs."""
        return self._stats.items()

    def filter(self, keep: Tensor) -> None:
        """Keep the rows of a bool mask [N], or of int64 indices in their order."""
        rows = keep.nonzero()[:, 0] if keep.dtype == torch.bool else keep
        numbers = rows.tolist()
        for name, values in self._stats.items():
            if isinstance(values, Tensor):
                self._stats[name] = values[upload(rows, values.device)]
            elif isinstance(values, np.ndarray):
                self._stats[name] = values[np.array(numbers, dtype=np.int64)]
            else:
                self._stats[name] = [values[i] for i in numbers]

    def cat(self, new_stats: MaskData) -> None:
        """Append the rows of another table; columns that this one lacks are taken over."""
        for name, values in new_stats.items():
            old = self._stats.get(name)
            if old is None:
                self._stats[name] = list(map(copy, values)) if isinstance(values, list) else deepcopy(values)
            elif isinstance(values, Tensor):
                self._stats[name] = torch.cat([torch.as_tensor(old), values])
            elif isinstance(values, np.ndarray):
                self._stats[name] = np.concatenate([np.asarray(old), values])
            else:
                self._stats[name] = [*old, *map(copy, values)]

    def to_numpy(self) -> None:
        """Tensors become float32 arrays."""
        for name, values in self._stats.items():
            if isinstance(values, Tensor):
                self._stats[name] = values.float().detach().cpu().numpy()


def is_box_near_crop_edge(boxes: Tensor, crop_box: Sequence[int], orig_box: Sequence[int], atol: float = 20.0) -> Tensor:
    """boxes: [N, 4] in pixels of the crop -> [N] bool: a side within `atol` pixels of a crop edge that is no image edge."""
    crop, image = (upload_numbers(box, torch.float32, boxes.device) for box in (crop_box, orig_box))
    placed = uncrop_boxes_xyxy(boxes, crop_box).float()
    return (((placed - crop).abs() <= atol) & ~((placed - image).abs() <= atol)).any(1)


def box_xyxy_to_xywh(box_xyxy: Any) -> Any:
    """(x0, y0, x1, y1) -> (x0, y0, width, height), as a new tensor, array or list."""
    box = deepcopy(box_xyxy)
    box[2], box[3] = box[2] - box[0], box[3] - box[1]
    return box


def batch_iterator(batch_size: int, *args: Any) -> Iterator[list[Any]]:
    """Slices of `batch_size` rows of every argument; the last may be shorter. Raises ValueError for unequal lengths."""
    if batch_size < 1 or not args or any(len(a) != len(args[0]) for a in args):
        raise ValueError(f"batch_size: expected 1 or more and arguments of one length, got {batch_size} and {[len(a) for a in args]}")
    for start in range(0, len(args[0]), batch_size):
        yield [a[start : start + batch_size] for a in args]


def mask_to_rle_pytorch(tensor: Tensor) -> list[Rle]:
    """[N, H, W] bool -> N plain run lengths; see `io.rle.mask_to_rle`."""
    return mask_to_rle(tensor)


def rle_to_mask(rle: Any) -> npt.NDArray[np.bool_]:
    """Plain run lengths -> mask [H, W]. The size is the caller's own: it is not limited."""
    return decode_rle(rle, max_pixels=max(1, rle["size"][0] * rle["size"][1]))


def area_from_rle(rle: Any) -> int:
    """Pixels of a mask in plain run lengths."""
    return int(np.sum(rle["counts"][1::2], dtype=np.int64))


def plain_rle(rle: Any) -> Rle:
    """Uncompressed run lengths with counts as a list of integers."""
    return {"size": [*rle["size"]], "counts": np.asarray(rle["counts"]).tolist()}


def coco_encode_rle(uncompressed_rle: Any) -> Rle:
    """Plain run lengths -> COCO's compressed ones, counts as str; needs no pycocotools."""
    return compress_rle(uncompressed_rle)


def calculate_stability_score(masks: Tensor, mask_threshold: float, threshold_offset: float) -> Tensor:
    """[..., H, W] logits -> [...]: IoU of the masks at `mask_threshold` + and - `threshold_offset`."""
    return stability_score(masks, mask_threshold, threshold_offset)


def batched_mask_to_box(masks: Tensor) -> Tensor:
    """[..., H, W] bool -> [..., 4] boxes (x0, y0, x1, y1), last pixel included; zeros for an empty mask."""
    return boxes(masks)


def build_point_grid(n_per_side: int) -> npt.NDArray[np.float64]:
    """[n * n, 2] centres (x, y) of n x n cells of the unit square, row by row."""
    offset = 1 / (2 * n_per_side)
    centres = np.linspace(offset, 1 - offset, n_per_side)
    x, y = np.meshgrid(centres, centres)
    return np.stack([x, y], axis=-1).reshape(-1, 2)


def build_all_layer_point_grids(n_per_side: int, n_layers: int, scale_per_layer: int) -> list[npt.NDArray[np.float64]]:
    """A grid per crop layer (0 is the whole image), each with `scale_per_layer` times fewer points a side than the one before."""
    sides = [int(n_per_side / scale_per_layer**layer) for layer in range(n_layers + 1)]
    if min(sides) < 1:
        raise ValueError(
            f"points_per_side {n_per_side} leaves no point in crop layer {sides.index(0)} at downscale factor {scale_per_layer}"
        )
    return [build_point_grid(side) for side in sides]


def generate_crop_boxes(im_size: Sequence[int], n_layers: int, overlap_ratio: float) -> tuple[list[list[int]], list[int]]:
    """Boxes (x0, y0, x1, y1) of the image (height, width) and of 4**i overlapping crops of layer i = 1 .. n_layers, column by column;
    and the layer of each. overlap_ratio: of the short side, for layer 1; halved with every layer.
    """
    height, width = im_size
    crops, layers = [[0, 0, width, height]], [0]
    for layer in range(1, n_layers + 1):
        count = 2**layer
        overlap = int(overlap_ratio * min(height, width) * (2 / count))
        crop_w, crop_h = (math.ceil((overlap * (count - 1) + side) / count) for side in (width, height))
        for column, row in product(range(count), repeat=2):
            x0, y0 = column * (crop_w - overlap), row * (crop_h - overlap)
            crops.append([x0, y0, min(x0 + crop_w, width), min(y0 + crop_h, height)])
            layers.append(layer)
    return crops, layers


def uncrop_boxes_xyxy(boxes: Tensor, crop_box: Sequence[int]) -> Tensor:
    """boxes [..., 4] in pixels of a crop -> in pixels of the image."""
    x0, y0 = crop_box[:2]
    return boxes + upload(torch.tensor([x0, y0, x0, y0]), boxes.device)


def uncrop_points(points: Tensor, crop_box: Sequence[int]) -> Tensor:
    """points [..., 2] in pixels of a crop -> in pixels of the image."""
    return points + upload(torch.tensor(list(crop_box[:2])), points.device)


def uncrop_masks(masks: Tensor, crop_box: Sequence[int], orig_h: int, orig_w: int) -> Tensor:
    """masks [..., h, w] of a crop -> [..., orig_h, orig_w], 0 outside it."""
    x0, y0, x1, y1 = crop_box
    if (x0, y0, x1, y1) == (0, 0, orig_w, orig_h):
        return masks
    return F.pad(masks, (x0, orig_w - x1, y0, orig_h - y1), value=0)


def remove_small_regions(mask: npt.NDArray[Any], area_thresh: float, mode: str) -> tuple[npt.NDArray[np.bool_], bool]:
    """mask [H, W] without holes (mode "holes") or specks ("islands") of fewer than `area_thresh` pixels, and whether it changed.

    Components are 8-connected. Where every island is small, the largest stays (the first of them in a tie). Needs no OpenCV.
    """
    if mode not in ("holes", "islands"):
        raise ValueError(f"mode: expected 'holes' or 'islands', got {mode!r}")
    cleaned, changed = without_small_regions(torch.from_numpy(np.ascontiguousarray(mask).astype(bool))[None], area_thresh, mode)
    return cleaned[0].numpy(), bool(changed[0])


def without_small_regions(masks: Tensor, area_thresh: float, mode: str) -> tuple[Tensor, Tensor]:
    """`remove_small_regions` of many masks at once: [N, H, W] bool -> the same shape, and [N] bool."""
    largest_small = math.ceil(area_thresh) - 1
    if largest_small < 1 or len(masks) == 0:
        return masks, torch.zeros(len(masks), dtype=torch.bool, device=masks.device)
    if mode == "holes":
        small = small_components(~masks, largest_small)
        return masks | small, small.flatten(1).any(1)
    small = small_components(masks, largest_small)
    cleaned, changed = masks & ~small, small.flatten(1).any(1)
    vanished = changed & ~cleaned.flatten(1).any(1)
    if vanished.any():
        labels, areas = connected_components(masks[vanished])
        # the label is the first pixel of a component: of equal areas argmax takes the one that comes first
        first = areas.flatten(1).argmax(1)
        label = labels.flatten(1).gather(1, first[:, None])
        cleaned[vanished] = labels == label[..., None]
    return cleaned, changed
