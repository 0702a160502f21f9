"""Errors of a kernel as multiples of torch's, over several draws of a case.

The error of a few numbers is a matter of chance: where torch happens to be lucky, a kernel that
errs as torch does may err four times as much, and which draws these are differs between processors.
The typical ratio, a geometric mean, hardly depends on them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from sam2_fast.proving.errors import rms_error

Outputs = Sequence[Tensor]

LIMIT, LIMIT_OF_ONE = 2.0, 8.0
"""Of the typical ratio, and of the ratio of one draw."""
LEAST = 1 / LIMIT
"""A draw on which a kernel is luckier than this does not make up for others."""


class Errors:
    """Errors of each output of an op."""

    def __init__(self) -> None:
        self._ratios: list[list[float]] = []

    def add(self, ours: Outputs, torchs: Outputs, exact: Outputs) -> None:
        """One draw: outputs of the kernel, of torch in the same dtype, and in float64."""
        ratios = []
        for own, other, true in zip(ours, torchs, exact, strict=True):
            assert own.shape == other.shape == true.shape
            rounding = rms_error(true.to(other.dtype), true)  # torch may have met a number exactly
            ratios.append(rms_error(own, true) / max(rms_error(other, true), rounding, 1e-30))
        self._ratios.append(ratios)

    def check(self, *which: object) -> None:
        """Every output errs at most `LIMIT` times as much as torch. which: part of the message."""
        for output, ratios in enumerate(zip(*self._ratios, strict=True)):
            assert all(map(math.isfinite, ratios)), (*which, output, ratios)
            mean = math.exp(math.fsum(math.log(max(r, LEAST)) for r in ratios) / len(ratios))
            assert mean <= LIMIT and max(ratios) <= LIMIT_OF_ONE, (*which, output, mean, ratios)
        assert self._ratios, "nothing was added"
