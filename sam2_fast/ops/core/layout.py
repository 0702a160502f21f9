"""Shapes of named weights, written with symbols: "C", "3*C", "C/2" or a number."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

_EXPRESSION = re.compile(r"(?:(\d+)\*)?([A-Za-z_]\w*)(?:/(\d+))?$")

Sizes = Mapping[str, int]
"""The size of each symbol."""


class Dim(NamedTuple):
    """`times * symbol / over`, or the number `times` without a symbol."""

    symbol: str | None
    times: int = 1
    over: int = 1

    @classmethod
    def of(cls, text: str | int) -> Dim:
        """From "C", "3*C", "C/2", "3*C/2" or a number. Raises ValueError for anything else."""
        if isinstance(text, int):
            return cls(None, text)
        match = _EXPRESSION.match(text)
        if match is None:
            raise ValueError(f"dimension: expected a symbol such as 'C' or '3*C', got {text!r}")
        return cls(match[2], int(match[1] or 1), int(match[3] or 1))

    def substituted(self, symbols: Mapping[str, Dim]) -> Dim:
        """The dimension with its symbol replaced by its value in `symbols`, if it is in there."""
        outer = None if self.symbol is None else symbols.get(self.symbol)
        if outer is None:
            return self
        return Dim(outer.symbol, self.times * outer.times, self.over * outer.over)

    def value(self, sizes: Sizes) -> int:
        """The size as a number. Raises KeyError for a symbol that `sizes` lacks."""
        return self.times * (1 if self.symbol is None else sizes[self.symbol]) // self.over

    def __str__(self) -> str:
        if self.symbol is None:
            return str(self.times)
        times = "" if self.times == 1 else f"{self.times} "
        over = "" if self.over == 1 else f" / {self.over}"
        return f"{times}{self.symbol}{over}"


class Leaf(NamedTuple):
    """One tensor of named weights."""

    name: str  # such as "layers[1].self_q.weight"
    dims: tuple[Dim, ...]
    matrix: bool  # whether matrix products use it, in the compute dtype

    def described(self) -> str:
        """The shape in symbols."""
        return f"[{', '.join(map(str, self.dims))}]"


def bind(leaves: Sequence[Leaf], shapes: Sequence[tuple[int, ...]]) -> dict[str, int]:
    """The size of each symbol, from the first dimension that consists of it alone.

    Raises ValueError for the first tensor with a shape that does not fit.
    """
    sizes: dict[str, int] = {}
    for leaf, shape in zip(leaves, shapes, strict=True):
        if len(shape) != len(leaf.dims):
            _raise_shape_error(leaf, f"{len(leaf.dims)} dimensions", shape)
        for dim, size in zip(leaf.dims, shape, strict=True):
            if dim.symbol is not None and dim.times == dim.over == 1:
                sizes.setdefault(dim.symbol, size)
    for leaf, shape in zip(leaves, shapes, strict=True):
        expected = tuple(dim.value(sizes) for dim in leaf.dims)
        if tuple(shape) != expected:
            _raise_shape_error(leaf, f"shape {expected}", shape)
    return sizes


def _raise_shape_error(leaf: Leaf, expected: str, shape: tuple[int, ...]) -> None:
    raise ValueError(
        f"weights.{leaf.name}: expected {expected}, {leaf.described()}, got {tuple(shape)}"
    )
