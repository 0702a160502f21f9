"""Rows gathered by their addresses, for recorded frames, and whether the kernel has proved itself.

The kernel is no op of the registry: tensors of torch cannot say where rows lie that belong to
others. It is proved on rows whose addresses are known.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sam2_fast.ops.core.registry import Implementation
from sam2_fast.proving import gate

ROWS = (2, -1, 0, 3, 1, -1)
"""What a proof gathers of four rows; -1: no row."""


def select_rows(rows: Tensor, numbers: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Rows [R, C] by their numbers, zeros for the number -1: [len(numbers), C] in `dtype`."""
    found = [torch.zeros_like(rows[0]) if number < 0 else rows[number] for number in numbers]
    return torch.stack(found).to(dtype)


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
    """Why rows of the dtype of `like` must not be gathered into `out` [R, C]; None where they may.

    What is not known yet is proved now (`proving.gate`). Not for use while a graph is captured.
    """
    count = (max(ROWS) + 1) * out.shape[1]
    # every dtype holds these numbers: a copy of them is exact
    rows = (torch.arange(count, device=out.device) * 37 % 251 - 125).to(like.dtype)
    arguments = rows.view(-1, out.shape[1]), ROWS, out.dtype
    return gate.refusal(_KERNEL, select_rows, arguments, {})
