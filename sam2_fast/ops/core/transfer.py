"""Copies from the host to a device that do not wait for the device."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def upload(tensor: Tensor, device: torch.device | str) -> Tensor:
    """`tensor` on `device`. A copy to a GPU is asynchronous: the host does not wait.

    It goes through pinned memory, on the current stream. With pageable memory the host would wait
    for all queued work of the stream. torch keeps the pinned copy until it has been read.
    """
    if tensor.device == device:
        return tensor
    if tensor.device.type == "cpu" and torch.device(device).type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def upload_numbers(values: Sequence[Any], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """A (nested) list as a tensor on `device`, copied as in `upload`."""
    return upload(torch.tensor(values, dtype=dtype), device)


def refill(target: Tensor, values: Sequence[int]) -> None:
    """Overwrite `target` [N] int64 with integers, in stream order; the host does not wait."""
    # several times as fast as torch.tensor
    source = torch.frombuffer(array("q", values), dtype=torch.int64)
    target.copy_(source.pin_memory() if target.device.type == "cuda" else source, non_blocking=True)
