"""The rule by which a result is right: its error against torch's own error."""

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
"""The root mean square error may be this multiple of torch's."""
WORST_LIMIT = 8.0
"""The largest error may be this multiple of torch's largest: a single wrong tile of a large result
hardly moves the mean. It is wider, since the largest of many rounding errors is a matter of chance.
"""


class Outcome(NamedTuple):
    """Whether a result is right."""

    reason: str | None
    """None: right. Else what is wrong, as part of a sentence."""
    error: float | None
    """Root mean square error as a multiple of torch's own; None where there are no rounded numbers,
    or shapes differ."""


Align = Callable[[tuple[Any, ...]], tuple[Any, ...]]
"""Of some results of one op, as many results that can be compared: what the op leaves open is left
out."""


def rms_error(values: Tensor, exact: Tensor) -> float:
    """Root mean square error, computed in float64; 0 for empty tensors."""
    return (values.double() - exact).square().mean().sqrt().item() if values.numel() else 0.0


def cast(value: Any, dtype: torch.dtype) -> Any:
    """`value` with every floating-point tensor in it in `dtype`."""
    return mapped(lambda x: x.to(dtype) if x.is_floating_point() else x, value)


def judge(result: Any, by_torch: Any, exact: Any, align: Align | None = None) -> Outcome:
    """Compare what a kernel computed with torch's result in the same dtype and an exact one.

    Shapes, dtypes, integers and truth values must be torch's; rounded numbers finite, and within
    `RMS_LIMIT` and `WORST_LIMIT`. `align` sees the three results once their shapes agree.
    """
    if (reason := _unlike(result, by_torch)) is not None:
        return Outcome(reason, None)
    if align is not None:
        result, by_torch, exact = align((result, by_torch, exact))
    ratios: list[float] = []
    triples = zip(tree_leaves(result), tree_leaves(by_torch), tree_leaves(exact), strict=True)
    for i, (ours, torchs, true) in enumerate(triples):
        if not isinstance(ours, Tensor) or not ours.is_floating_point():
            if not _equal(ours, torchs):
                return Outcome(f"output {i} differs from torch's, and it has no rounding", None)
            continue
        ratio, reason = _ratio(ours, torchs, true)
        if reason is not None:
            return Outcome(f"output {i} {reason}", ratio)
        ratios.append(ratio or 0.0)
    return Outcome(None, max(ratios, default=None))


def _ratio(ours: Tensor, torchs: Tensor, exact: Tensor) -> tuple[float | None, str | None]:
    """The multiple of torch's rms error, and what is wrong with it."""
    if not bool(ours.isfinite().all()):
        return None, "has numbers that are not finite"
    true = exact.double()
    nearest = true.to(ours.dtype)  # torch may have met a number exactly; rounding it is no error
    allowed = max(rms_error(torchs, true), rms_error(nearest, true), 1e-30)
    ratio = rms_error(ours, true) / allowed
    if not math.isfinite(ratio):
        return None, "cannot be compared: the reference has numbers that are not finite"
    if ratio > RMS_LIMIT:
        return ratio, f"has {ratio:.3g} times the error of torch in the same dtype"
    most = max(_worst(torchs, true), _worst(nearest, true), 1e-30)
    worst = _worst(ours, true) / most
    if not worst <= WORST_LIMIT:
        return ratio, f"has a number whose error is {worst:.3g} times torch's largest"
    return ratio, None


def _worst(values: Tensor, exact: Tensor) -> float:
    return (values.double() - exact).abs().max().item() if values.numel() else 0.0


def _unlike(result: Any, by_torch: Any) -> str | None:
    ours, torchs = tree_leaves(result), tree_leaves(by_torch)
    if len(ours) != len(torchs):
        return f"it returns {len(ours)} values, torch {len(torchs)}"
    for i, (a, b) in enumerate(zip(ours, torchs, strict=True)):
        for what in ("shape", "dtype"):
            one, other = getattr(a, what, None), getattr(b, what, None)
            if one != other:
                return f"output {i} has {what} {_short(one)}, torch's {_short(other)}"
    return None


def _short(value: Any) -> str:
    return str(tuple(value)) if isinstance(value, torch.Size) else str(value)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    return np.array_equal(a, b) if isinstance(a, np.ndarray) else bool(a == b)
