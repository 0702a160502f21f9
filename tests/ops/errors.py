"""Errors of a kernel as multiples of torch's errors, over several draws of a case.

The error of a few numbers is a matter of chance: on a draw on which torch's result happens to be
nearly exact, a kernel that is as accurate as torch may err four times as much, and which draws
these are differs between processors. The typical ratio, a geometric mean, hardly depends on them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from sam2_fast.proving.errors import rms_error

Outputs = Sequence[Tensor]

MEAN_LIMIT = 2.0
"""Limit of the geometric mean of the ratios."""
DRAW_LIMIT = 8.0
"""Limit of the ratio of each draw."""
LEAST_RATIO = 1 / MEAN_LIMIT
"""Smaller ratios enter the mean as this one, so that a draw on which the kernel happens to be very
accurate does not make up for others.
"""


class Errors:
    """Errors of each output of an op."""

    def __init__(self) -> None:
        self._ratios: list[list[float]] = []

    def add(self, actual: Outputs, reference: Outputs, exact: Outputs) -> None:
        """Add one draw: outputs of the kernel, of torch in the same dtype, and in float64."""
        ratios = []
        for kernel_output, torch_output, exact_output in zip(actual, reference, exact, strict=True):
            assert kernel_output.shape == torch_output.shape == exact_output.shape
            # Torch's result may be exact; the error of rounding to its dtype is always allowed.
            rounding_error = rms_error(exact_output.to(torch_output.dtype), exact_output)
            torch_error = rms_error(torch_output, exact_output)
            kernel_error = rms_error(kernel_output, exact_output)
            ratios.append(kernel_error / max(torch_error, rounding_error, 1e-30))
        self._ratios.append(ratios)

    def check(self, *context: object) -> None:
        """Assert that every output is within both limits. `context` is part of the message."""
        for output, ratios in enumerate(zip(*self._ratios, strict=True)):
            assert all(map(math.isfinite, ratios)), (*context, output, ratios)
            mean = math.exp(math.fsum(math.log(max(r, LEAST_RATIO)) for r in ratios) / len(ratios))
            within_limits = mean <= MEAN_LIMIT and max(ratios) <= DRAW_LIMIT
            assert within_limits, (*context, output, mean, ratios)
        assert self._ratios, "nothing was added"
