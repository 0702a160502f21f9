"""The rule for correct results: their error is limited by torch's own error."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from sam2_fast.proving.rules import mapped

RMS_LIMIT = 2.0
"""Limit of the root mean square error, as a multiple of torch's."""
WORST_LIMIT = 8.0
"""Limit of the largest error, as a multiple of torch's largest. It detects a single wrong tile of a
large result, which hardly changes the mean. It is higher than `RMS_LIMIT`, since the largest of
many rounding errors varies more.
"""


class Outcome(NamedTuple):
    """Whether a result is correct."""

    reason: str | None
    """None: correct. Else what is wrong, as part of a sentence."""
    error: float | None
    """Root mean square error as a multiple of torch's own. None without floating-point outputs, and
    if shapes differ."""


Align = Callable[[tuple[Any, ...]], tuple[Any, ...]]
"""Maps results of one op to results that can be compared, without the parts that are unspecified.
"""


def rms_error(values: Tensor, exact: Tensor) -> float:
    """Root mean square error, computed in float64; 0 for empty tensors."""
    return (values.double() - exact).square().mean().sqrt().item() if values.numel() else 0.0


def cast(value: Any, dtype: torch.dtype) -> Any:
    """`value` with every floating-point tensor in it in `dtype`."""
    return mapped(lambda x: x.to(dtype) if x.is_floating_point() else x, value)


def judge(result: Any, by_torch: Any, exact: Any, align: Align | None = None) -> Outcome:
    """Compare the result of a kernel with torch's in the same dtype, and with an exact one.

    Shapes, dtypes, integers and bools must equal torch's. Floating-point numbers must be finite and
    within `RMS_LIMIT` and `WORST_LIMIT`. `align` is applied to the three results if shapes agree.
    """
    if (reason := _difference(result, by_torch)) is not None:
        return Outcome(reason, None)
    if align is not None:
        result, by_torch, exact = align((result, by_torch, exact))
    ratios: list[float] = []
    triples = zip(tree_leaves(result), tree_leaves(by_torch), tree_leaves(exact), strict=True)
    for i, (ours, reference, true) in enumerate(triples):
        if not isinstance(ours, Tensor) or not ours.is_floating_point():
            if not _equal(ours, reference):
                return Outcome(f"output {i} differs from torch's, and it has no rounding", None)
            continue
        ratio, reason = _ratio(ours, reference, true)
        if reason is not None:
            return Outcome(f"output {i} {reason}", ratio)
        ratios.append(ratio or 0.0)
    return Outcome(None, max(ratios, default=None))


def _ratio(ours: Tensor, reference: Tensor, exact: Tensor) -> tuple[float | None, str | None]:
    """The error as a multiple of torch's (or None), and why it is too large (or None)."""
    if not bool(ours.isfinite().all()):
        return None, "has numbers that are not finite"
    true = exact.double()
    # torch's result may be exact by chance; the error of rounding the exact result is allowed
    nearest = true.to(ours.dtype)
    allowed = max(rms_error(reference, true), rms_error(nearest, true), 1e-30)
    ratio = rms_error(ours, true) / allowed
    if not math.isfinite(ratio):
        return None, "cannot be compared: the reference has numbers that are not finite"
    if ratio > RMS_LIMIT:
        return ratio, f"has {ratio:.3g} times the error of torch in the same dtype"
    most = max(_worst(reference, true), _worst(nearest, true), 1e-30)
    worst = _worst(ours, true) / most
    if not worst <= WORST_LIMIT:
        return ratio, f"has a number with an error of {worst:.3g} times torch's largest"
    return ratio, None


def _worst(values: Tensor, exact: Tensor) -> float:
    return (values.double() - exact).abs().max().item() if values.numel() else 0.0


def _difference(result: Any, by_torch: Any) -> str | None:
    """The first difference in number, shape or dtype of outputs, or None."""
    ours = tree_leaves(result)
    reference = tree_leaves(by_torch)
    if len(ours) != len(reference):
        return f"it returns {len(ours)} values, torch {len(reference)}"
    for i, (a, b) in enumerate(zip(ours, reference, strict=True)):
        for name in ("shape", "dtype"):
            actual = getattr(a, name, None)
            expected = getattr(b, name, None)
            if actual != expected:
                return f"output {i} has {name} {_short(actual)}, torch's {_short(expected)}"
    return None


def _short(value: Any) -> str:
    return str(tuple(value)) if isinstance(value, torch.Size) else str(value)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    return np.array_equal(a, b) if isinstance(a, np.ndarray) else bool(a == b)
