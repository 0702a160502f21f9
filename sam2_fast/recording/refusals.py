"""Why the work of a model cannot run from CUDA graphs."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from sam2_fast.model import Sam2
from sam2_fast.ops.memory_attention import attention_configuration
from sam2_fast.proving import gate


def no_cuda_graphs_on(device: torch.device) -> str | None:
    """Why `device` cannot run CUDA graphs, or None."""
    if device.type == "cuda":
        return None
    return f"tensors are on {device}, CUDA graphs need a cuda device"


def is_capturing() -> bool:
    """Whether the caller captures a CUDA graph on the current stream."""
    return torch.cuda.is_current_stream_capturing()


def overridden(model: Sam2) -> list[str]:
    """Names of members of `Sam2` that a subclass or the instance has replaced.

    A CUDA graph of the model runs the code of `Sam2`.
    """
    kind = type(model)
    own = vars(model)
    return [
        name for name, value in _sam2_members() if getattr(kind, name) is not value or name in own
    ]


@cache
def _sam2_members() -> tuple[tuple[str, Any], ...]:
    """Methods and properties that `Sam2` itself defines, without special methods."""
    return tuple(
        (name, getattr(Sam2, name)) for name, value in vars(Sam2).items() if _is_code(name, value)
    )


def _is_code(name: str, value: object) -> bool:
    special = name.startswith("__") and name.endswith("__")
    return not special and (
        callable(value) or isinstance(value, property | classmethod | staticmethod)
    )


def unproved_attention(model: Sam2, low: Tensor, dtype: torch.dtype) -> str | None:
    """Why the Triton kernels of memory attention are not proved for a frame, or None.

    low: the frame's features [B, dim, h, w]; dtype: the compute dtype.
    Kernels without any result so far are proved by the registry, when a frame is tracked without a
    CUDA graph. If `model.prove` is False, no proof is needed.
    """
    if not model.prove:
        return None
    config = model.config
    tokens = (low.shape[2] * low.shape[3], low.shape[1])
    sizes = config.memory_layers, config.memory_dim, config.memory_ffn_dim
    configuration = attention_configuration(tokens, low.dtype, dtype, *sizes)
    return gate.current().refusal_of("memory_attention", "triton", low.device, configuration)
