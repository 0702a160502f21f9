"""Shapes of named weights, written with symbols: "C", "3*C", "C/2" or a number."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

_EXPRESSION = re.compile(r"(?:(\d+)\*)?([A-Za-z_]\w*)(?:/(\d+))?$")

Sizes = Mapping[str, int]
"""What symbols stand for."""


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
        found = _EXPRESSION.match(text)
        if found is None:
            raise ValueError(f"dimension: expected a symbol such as 'C' or '3*C', got {text!r}")
        return cls(found[2], int(found[1] or 1), int(found[3] or 1))

    def substituted(self, symbols: Mapping[str, Dim]) -> Dim:
        """With its symbol replaced by what it stands for outside; other symbols stay."""
        outer = None if self.symbol is None else symbols.get(self.symbol)
        if outer is None:
            return self
        return Dim(outer.symbol, self.times * outer.times, self.over * outer.over)

    def value(self, sizes: Sizes) -> int:
        """The number. Raises KeyError for a symbol that `sizes` lacks."""
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
    matrix: bool  # whether products are computed with it, in the compute dtype

    def described(self) -> str:
        """The shape in symbols."""
        return f"[{', '.join(map(str, self.dims))}]"


def bind(leaves: Sequence[Leaf], shapes: Sequence[tuple[int, ...]]) -> dict[str, int]:
    """What the symbols stand for: each is taken from the first dimension that it is all of.

    Raises ValueError that names the first tensor whose shape does not fit.
    """
    sizes: dict[str, int] = {}
    for leaf, shape in zip(leaves, shapes, strict=True):
        if len(shape) != len(leaf.dims):
            _refuse(leaf, f"{len(leaf.dims)} dimensions", shape)
        for dim, size in zip(leaf.dims, shape, strict=True):
            if dim.symbol is not None and dim.times == dim.over == 1:
                sizes.setdefault(dim.symbol, size)
    for leaf, shape in zip(leaves, shapes, strict=True):
        expected = tuple(dim.value(sizes) for dim in leaf.dims)
        if tuple(shape) != expected:
            _refuse(leaf, f"shape {expected}", shape)
    return sizes


def _refuse(leaf: Leaf, expected: str, shape: tuple[int, ...]) -> None:
    raise ValueError(
        f"weights.{leaf.name}: expected {expected}, {leaf.described()}, got {tuple(shape)}"
    )
