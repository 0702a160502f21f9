"""From the host to a device without waiting for what the device is doing."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def upload(tensor: Tensor, device: torch.device | str) -> Tensor:
    """`tensor` on `device`. From a CPU to a GPU through pinned memory, on the current stream: the
    host does not wait.

    Pageable memory would make it wait for all that the stream still has to do. torch keeps the
    pinned copy until it was read.
    """
    if tensor.device == device:
        return tensor
    if tensor.device.type == "cpu" and torch.device(device).type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def upload_numbers(values: Sequence[Any], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """A (nested) list as a tensor on `device`, as `upload` brings it there."""
    return upload(torch.tensor(values, dtype=dtype), device)


def refill(target: Tensor, values: Sequence[int]) -> None:
    """Write integers over `target` [N] int64, as `upload` brings them there: in the order of the
    stream, without a wait of the host."""
    # several times as fast as torch.tensor
    source = torch.frombuffer(array("q", values), dtype=torch.int64)
    target.copy_(source.pin_memory() if target.device.type == "cuda" else source, non_blocking=True)
