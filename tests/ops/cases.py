"""Cases that the test module of an op declares, and that the tests of all ops collect by name.

A new op therefore edits no shared list. A module tests/ops/test_<op>.py may declare
* `RECORDED: dict[str, Callable[[], Case]]`, cases of ops whose definition torch can record;
* `FIXED_BY_VALUES`, the same for ops whose definition must not be recorded, because its
  control flow depends on the recorded values; all backends of such an op agree exactly;
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
    """An op as a function of tensors, and two draws of them that differ in every tensor."""

    run: Callable[..., Any]
    """Called as `run(*tensors, backend=...)`."""
    example: Tensors
    other: Tensors
    exact: Callable[..., Any] | None = None
    """The result in float64. If None, it is that of `run` on tensors in float64."""


class Sizes(NamedTuple):
    """A Triton kernel `<name>_kernel` of kernels/<module>.py."""

    module: str
    name: str
    constants: dict[str, Any]
    types: dict[str, str]
    """Triton's types of pointers and floats by argument name; other arguments are int32."""


def case_of(run: Callable[..., Any], *tensors: Tensor) -> Case:
    """A case with `tensors` as the example, and other values in the same shapes as the other draw.

    Every tensor is a copy: a recorder would treat a tensor that is passed twice as one input.
    """
    generator = torch.Generator().manual_seed(7)
    other = (
        t + 0.3 * torch.randn(t.shape, generator=generator)
        if t.is_floating_point()
        else torch.ones_like(t)
        for t in tensors
    )
    return Case(run, tuple(t.clone() for t in tensors), tuple(other))


class TensorSubclass(Tensor):
    """A subclass that the library does not know."""


def with_matrix_dtype(weights: W, dtype: torch.dtype = torch.bfloat16) -> W:
    """`weights` with the matrices in `dtype`, and the other tensors as they are."""
    return weights.mapped(lambda leaf, w: w.to(dtype) if leaf.matrix else w)


def with_changed_weight(inputs: Any, name: str, change: Callable[[Tensor], Tensor]) -> Any:
    """`inputs`, a named tuple, with `change` applied to the tensor `name` of its `weights`."""
    weights = inputs.weights
    return inputs._replace(
        weights=weights.with_tensors({name: change(dict(weights.named())[name])})
    )


def random_tensors(*shapes: tuple[int, ...], seed: int = 0) -> Tensors:
    """Normally distributed tensors of these shapes."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


def as_list(output: Any) -> list[Tensor]:
    """The tensors that an op returns, as a list."""
    return [output] if isinstance(output, Tensor) else list(output)


def collected(name: str) -> Any:
    """The dictionaries or lists that test modules declare as `name`, joined into one."""
    parts = []
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        if re.search(rf"^{name}\b", path.read_text(), re.MULTILINE):
            parts.append(getattr(import_module(f"tests.ops.{path.stem}"), name))
    assert parts, name
    if isinstance(parts[0], list):
        return [row for part in parts for row in part]
    return {key: value for part in parts for key, value in part.items()}
