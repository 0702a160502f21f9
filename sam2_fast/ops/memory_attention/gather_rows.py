"""Rows gathered by their addresses, for captured frames, and the proof of the kernel.

The kernel is not an op of the registry: its inputs are addresses of rows in other tensors, not
tensors. It is proved on the rows of one tensor.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sam2_fast.ops.core.registry import Implementation
from sam2_fast.proving import gate

ROWS = (2, -1, 0, 3, 1, -1)
"""The rows that a proof gathers from four rows; -1: no row."""


def select_rows(rows: Tensor, numbers: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Rows [R, C] by their numbers, zeros for the number -1: [len(numbers), C] in `dtype`."""
    selected = [torch.zeros_like(rows[0]) if number < 0 else rows[number] for number in numbers]
    return torch.stack(selected).to(dtype)


def select_rows_triton(rows: Tensor, numbers: Sequence[int], dtype: torch.dtype) -> Tensor:
    """As `select_rows`, by the addresses of the rows."""
    from sam2_fast.kernels.memory_attention import gather_rows

    size = rows.stride(0) * rows.element_size()
    addresses = [0 if number < 0 else rows.data_ptr() + number * size for number in numbers]
    out = rows.new_empty(len(numbers), rows.shape[1], dtype=dtype)
    gather_rows(torch.tensor(addresses, dtype=torch.int64, device=rows.device), rows, out)
    return out


_KERNEL = Implementation("gather_rows", "triton", select_rows_triton, lambda *_: None)


def gather_refusal(like: Tensor, out: Tensor) -> str | None:
    """Why rows of the dtype of `like` must not be gathered into `out` [R, C], or None.

    Without a verdict the kernel is proved now (`proving.gate`). Not for use during a capture.
    """
    count = (max(ROWS) + 1) * out.shape[1]
    # every dtype represents these numbers exactly
    rows = (torch.arange(count, device=out.device) * 37 % 251 - 125).to(like.dtype)
    arguments = rows.view(-1, out.shape[1]), ROWS, out.dtype
    return gate.refusal(_KERNEL, select_rows, arguments, {})
