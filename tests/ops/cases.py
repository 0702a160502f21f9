"""What tests of one op give to tests of all ops, which collect it by name: a new op edits no list.

A module tests/ops/test_<op>.py may have
* `RECORDED: dict[str, Callable[[], Case]]`, ops whose definition is recorded;
* `FIXED_BY_VALUES`, the same for ops whose definition must not be recorded, since its
  control flow depends on the recorded values; all backends of them agree exactly;
* `ON_A_DEVICE`, functions and their arguments, which are run on a second GPU;
* `TRITON_SIZES: list[Sizes]`, kernels that are compiled in bfloat16 with every size 1.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from sam2_fast.ops.core.weights import Weights

Tensors = tuple[Tensor, ...]
W = TypeVar("W", bound=Weights)


class Case(NamedTuple):
    """An op as a function of tensors. `run(*tensors, backend=...)`; the two draws differ in every
    tensor.
    """

    run: Callable[..., Any]
    example: Tensors
    other: Tensors
    exact: Callable[..., Any] | None = None  # in float64; None: `run` itself, on tensors in float64


class Sizes(NamedTuple):
    """A Triton kernel `<name>_kernel` of kernels/<module>.py."""

    module: str
    name: str
    constants: dict[str, Any]
    kinds: dict[str, str]
    """Triton's types of pointers and floats by argument name; other arguments are int32."""


def drawn(run: Callable[..., Any], *tensors: Tensor) -> Case:
    """A case of `tensors` and of others of the same shapes. No tensor is given twice: a recorder
    would take the two for one.
    """
    generator = torch.Generator().manual_seed(7)
    other = (
        t + 0.3 * torch.randn(t.shape, generator=generator)
        if t.is_floating_point()
        else torch.ones_like(t)
        for t in tensors
    )
    return Case(run, tuple(t.clone() for t in tensors), tuple(other))


class Odd(Tensor):
    """A subclass, of which nothing is known."""


def narrowed(weights: W, dtype: torch.dtype = torch.bfloat16) -> W:
    """Matrices in a narrower dtype."""
    return weights.mapped(lambda leaf, w: w.to(dtype) if leaf.matrix else w)


def changed(inputs: Any, name: str, change: Callable[[Tensor], Tensor]) -> Any:
    """A named tuple with one of its `weights` changed by its name."""
    weights = inputs.weights
    return inputs._replace(
        weights=weights.with_tensors({name: change(dict(weights.named())[name])})
    )


def numbers(*shapes: tuple[int, ...], seed: int = 0) -> Tensors:
    """Normally distributed tensors of these shapes."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


def listed(found: Any) -> list[Tensor]:
    """What an op returns, as a list."""
    return [found] if isinstance(found, Tensor) else list(found)


def collected(name: str) -> Any:
    """What all modules have under this name, dictionaries or lists joined."""
    parts = []
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        if re.search(rf"^{name}\b", path.read_text(), re.MULTILINE):
            parts.append(getattr(import_module(f"tests.ops.{path.stem}"), name))
    assert parts, name
    if isinstance(parts[0], list):
        return [row for part in parts for row in part]
    return {key: value for part in parts for key, value in part.items()}
