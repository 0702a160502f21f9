"""Tables of masks, and conversions of their columns.

Source: official `utils/amg.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy, deepcopy
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sam2_fast.io.rle import Rle, compress_rle, decode_rle
from sam2_fast.ops.core.transfer import upload

Column = Tensor | npt.NDArray[Any] | list[Any]
Record = dict[str, Any]
"""One mask as `SAM2AutomaticMaskGenerator.generate` returns it."""


class MaskData:
    """A table of masks: columns of equal length that are filtered and extended together.

    A column is a tensor, an array or a list.
    """

    def __init__(self, **columns: Column) -> None:
        self._stats: dict[str, Column] = {}
        for name, values in columns.items():
            self[name] = values

    def __setitem__(self, key: str, item: Column) -> None:
        if not isinstance(item, (list, np.ndarray, Tensor)):
            raise TypeError(
                f"MaskData {key!r}: expected a list, an array or a tensor, got "
                f"{type(item).__name__}"
            )
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
        indices = rows.tolist()
        for name, values in self._stats.items():
            if isinstance(values, Tensor):
                self._stats[name] = values[upload(rows, values.device)]
            elif isinstance(values, np.ndarray):
                self._stats[name] = values[np.array(indices, dtype=np.int64)]
            else:
                self._stats[name] = [values[i] for i in indices]

    def cat(self, new_stats: MaskData) -> None:
        """Append the rows of another table; its new columns are copied."""
        for name, values in new_stats.items():
            old = self._stats.get(name)
            if old is None:
                is_list = isinstance(values, list)
                self._stats[name] = list(map(copy, values)) if is_list else deepcopy(values)
            elif isinstance(values, Tensor):
                self._stats[name] = torch.cat([torch.as_tensor(old), values])
            elif isinstance(values, np.ndarray):
                self._stats[name] = np.concatenate([np.asarray(old), values])
            else:
                self._stats[name] = [*old, *map(copy, values)]

    def to_numpy(self) -> None:
        """Convert tensors to float32 arrays."""
        for name, values in self._stats.items():
            if isinstance(values, Tensor):
                self._stats[name] = values.float().detach().cpu().numpy()


def batch_iterator(batch_size: int, *args: Any) -> Iterator[list[Any]]:
    """Slices of `batch_size` rows of every argument; the last one may be shorter.

    Raises ValueError for arguments of different lengths.
    """
    if batch_size < 1 or not args or any(len(a) != len(args[0]) for a in args):
        raise ValueError(
            f"batch_size: expected 1 or more and arguments of one length, got {batch_size} and "
            f"{[len(a) for a in args]}"
        )
    for start in range(0, len(args[0]), batch_size):
        yield [a[start : start + batch_size] for a in args]


def box_xyxy_to_xywh(box_xyxy: Any) -> Any:
    """(x0, y0, x1, y1) -> (x0, y0, width, height), as a new tensor, array or list."""
    box = deepcopy(box_xyxy)
    box[2], box[3] = box[2] - box[0], box[3] - box[1]
    return box


def rle_to_mask(rle: Any) -> npt.NDArray[np.bool_]:
    """Plain run lengths -> mask [H, W] of any size."""
    return decode_rle(rle, max_pixels=max(1, rle["size"][0] * rle["size"][1]))


def area_from_rle(rle: Any) -> int:
    """Pixels of a mask in plain run lengths."""
    return int(np.sum(rle["counts"][1::2], dtype=np.int64))


def plain_rle(rle: Any) -> Rle:
    """Uncompressed run lengths, with counts as a list of integers."""
    return {"size": [*rle["size"]], "counts": np.asarray(rle["counts"]).tolist()}


def records_of(data: MaskData, output_mode: str) -> list[Record]:
    """The rows of a table as dictionaries, with masks in the form of `output_mode`."""
    encode = {"coco_rle": compress_rle, "binary_mask": rle_to_mask}.get(output_mode, plain_rle)
    return [
        {
            "segmentation": encode(rle),
            "area": area_from_rle(rle),
            "bbox": box_xyxy_to_xywh(data["boxes"][i]).tolist(),
            "predicted_iou": data["iou_preds"][i].item(),
            "point_coords": [data["points"][i].tolist()],
            "stability_score": data["stability_score"][i].item(),
            "crop_box": box_xyxy_to_xywh(data["crop_boxes"][i]).tolist(),
        }
        for i, rle in enumerate(data["rles"])
    ]
