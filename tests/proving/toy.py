"""A toy op with a kernel that can be made wrong, and gates that guard it on the CPU."""

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
    """The op in torch: a linear layer, and whether the sum of each token is positive."""
    return torch.nn.functional.linear(x, weight) + offset, x.sum(-1) > 0


class Kernel:
    """The kernel of the op, which counts its runs. `change`, if any, alters its result."""

    def __init__(self, change: Callable[[Tensor, Tensor], Any] | None = None) -> None:
        self.runs = 0
        self._change = change

    def __call__(self, x: Tensor, weight: Tensor, offset: float = 0.0) -> Any:
        self.runs += 1
        y, positive = definition(x, weight, offset)
        return (y, positive) if self._change is None else self._change(y, positive)


def gate_in(directory: Path, card: Card = CARD, **options: Any) -> Gate:
    """A gate that guards Triton kernels on the CPU, with its cache in `directory`."""
    return Gate(
        lambda backend, _: backend == "triton", lambda _: card, lambda: directory, **options
    )


@contextmanager
def register(
    kernel: Callable[..., Any],
    reference: Callable[..., Any] = definition,
    op: str = OP,
) -> Iterator[None]:
    """Add the op to the registry: `kernel` as its Triton backend, `reference` as its torch one."""
    implementations = {
        (op, "triton"): Implementation(op, "triton", kernel, lambda *_: None),
        (op, "torch"): Implementation(op, "torch", reference, lambda *_: None),
    }
    with patch.dict(registry._implementations, implementations):
        yield


@contextmanager
def register_with_gate(directory: Path, kernel: Callable[..., Any]) -> Iterator[Gate]:
    """Add the op to the registry and use a new gate, as a process does that starts now."""
    with register(kernel), using(gate_in(directory)) as gate:
        yield gate


def call(
    dtype: torch.dtype = torch.bfloat16, batch: int = 2, out: int = 48, **options: Any
) -> tuple[Any, tuple[Any, ...]]:
    """Run the op on the backend that the registry selects; returns its result and its arguments."""
    inputs = arguments(dtype, batch, out)
    backend = options.pop("backend", "auto")
    return registry.execute(OP, backend, *inputs, **options), inputs


def arguments(dtype: torch.dtype, batch: int = 2, out: int = 48) -> tuple[Tensor, Tensor, float]:
    """Arguments of the op, the same for every call."""
    generator = torch.Generator().manual_seed(batch)
    x = torch.randn(batch, 40, 64, generator=generator).to(dtype)
    return x, torch.randn(out, 64, generator=generator).to(dtype), 0.5
