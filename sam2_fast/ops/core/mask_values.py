"""Values of arguments: dense tensors, and masks as booleans.

A number that is not clearly an object is never one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Mask = npt.NDArray[np.bool_]


def plain_tensor(tensor: Tensor, name: str) -> Tensor:
    """A tensor of real numbers that are in memory, detached.

    Raises ValueError for one of complex numbers, without data (meta), and for sparse, nested and
    quantised ones.
    name: of the argument, for errors.
    """
    is_plain = tensor.layout is torch.strided and not (tensor.is_nested or tensor.is_quantized)
    if not is_plain or tensor.is_meta or tensor.is_complex():
        kind = "nested tensor" if tensor.is_nested else str(tensor.layout)
        raise ValueError(
            f"{name}: expected a dense tensor of real numbers, got {tensor.dtype} in {kind} on "
            f"{tensor.device.type}"
        )
    return tensor.detach().resolve_neg()


def as_bool(mask: Any, name: str = "mask") -> Mask:
    """Any mask as a bool array of the same shape; a bool array is returned as it is.

    mask: an array, a nested list, or a tensor on any device. Booleans and integers: non-zero is
        object. Floating point: only 0 and 1, or 0 and 255, of which the second is object.
    Raises ValueError for other numbers, such as logits or a soft mask.
    """
    if isinstance(mask, Tensor):
        return as_bool_tensor(plain_tensor(mask, name), name).cpu().numpy()
    pixels = np.asarray(mask)
    if pixels.dtype.kind == "b":
        return pixels
    if pixels.dtype.kind in "iu":
        return np.asarray(pixels != 0)
    if pixels.dtype.kind != "f":
        raise ValueError(f"{name}: expected booleans or numbers, got {pixels.dtype}")
    objects = pixels != 0
    if not ((pixels == 1) | ~objects).all() and not ((pixels == 255) | ~objects).all():
        raise _not_binary(name, float(pixels.min()), float(pixels.max()))
    return np.asarray(objects)


def as_bool_tensor(mask: Tensor, name: str = "mask") -> Tensor:
    """`as_bool` for a tensor, on its device. Only floating point makes the host wait for it."""
    objects = mask if mask.dtype == torch.bool else mask != 0
    if mask.is_floating_point() and mask.numel():
        one, full = mask == 1, mask == 255
        if not bool((one | ~objects).all()) and not bool((full | ~objects).all()):
            raise _not_binary(name, float(mask.min()), float(mask.max()))
    return objects


def bool_tensor(mask: Any, name: str = "mask") -> Tensor:
    """`as_bool` as a tensor on the CPU with memory of its own, whatever the array's memory is."""
    return torch.from_numpy(np.array(as_bool(mask, name), order="C"))


def _not_binary(name: str, low: float, high: float) -> ValueError:
    return ValueError(
        f"{name}: expected booleans, integers, or floating point of only 0 and 1 (or 0 and 255), "
        f"got numbers from {low:g} to {high:g}; threshold first: logits > 0, probabilities >= 0.5"
    )
