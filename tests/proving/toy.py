"""A small op with a kernel that can be made wrong, and gates on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from sam2_fast.ops.core import registry
from sam2_fast.ops.core.registry import Implementation
from sam2_fast.proving.card import Card
from sam2_fast.proving.gate import Gate, using

CARD = Card("Test Card 1", 90, "575.1", "2.13", "3.8", "0.1.0", "build")
OP = "toy"


def definition(x: Tensor, weight: Tensor, offset: float = 0.0) -> tuple[Tensor, Tensor]:
    """Products of tokens with a matrix, and which of them are positive tokens."""
    return torch.nn.functional.linear(x, weight) + offset, x.sum(-1) > 0


class Kernel:
    """The toy's kernel; counts its runs. `change`: of its result, makes it wrong."""

    def __init__(self, change: Callable[[Tensor, Tensor], Any] | None = None) -> None:
        self.runs = 0
        self._change = change

    def __call__(self, x: Tensor, weight: Tensor, offset: float = 0.0) -> Any:
        self.runs += 1
        y, positive = definition(x, weight, offset)
        return (y, positive) if self._change is None else self._change(y, positive)


def gate_in(directory: Path, card: Card = CARD, **options: Any) -> Gate:
    """A gate that guards Triton kernels on the CPU."""
    return Gate(
        lambda backend, _: backend == "triton", lambda _: card, lambda: directory, **options
    )


@contextmanager
def registered(
    kernel: Callable[..., Any],
    reference: Callable[..., Any] = definition,
    op: str = OP,
) -> Iterator[None]:
    """The op in the registry: in Triton, and in torch."""
    made = {
        (op, "triton"): Implementation(op, "triton", kernel, lambda *_: None),
        (op, "torch"): Implementation(op, "torch", reference, lambda *_: None),
    }
    with patch.dict(registry._implementations, made):
        yield


@contextmanager
def proving(directory: Path, kernel: Callable[..., Any]) -> Iterator[Gate]:
    """The op in the registry, in a process that knows what is in `directory`."""
    with registered(kernel), using(gate_in(directory)) as gate:
        yield gate


def call(
    dtype: torch.dtype = torch.bfloat16, batch: int = 2, out: int = 48, **options: Any
) -> tuple[Any, tuple[Any, ...]]:
    """Run the toy as the registry decides: its result, and its arguments."""
    arguments = made(dtype, batch, out)
    backend = options.pop("backend", "auto")
    return registry.execute(OP, backend, *arguments, **options), arguments


def made(dtype: torch.dtype, batch: int = 2, out: int = 48) -> tuple[Tensor, Tensor, float]:
    """Arguments, always the same."""
    generator = torch.Generator().manual_seed(batch)
    x = torch.randn(batch, 40, 64, generator=generator).to(dtype)
    return x, torch.randn(out, 64, generator=generator).to(dtype), 0.5
