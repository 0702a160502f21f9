"""Times of all forms of the kernels, and of libraries for the same work.

Forms are those of `sam2_fast.kernels.choices`. Each is timed as a CUDA graph of ten calls.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from sam2_fast.kernels import choices
from torch import Tensor

from benchmarks.first_light.context import Context

CALLS = 10
# Linear layers of the trunks and of memory attention: rows, input channels, output channels,
# whether a norm precedes the layer.
PRODUCTS = {
    "tiny stage 1 qkv": (65536, 96, 288, True),
    "tiny stage 3 qkv": (4096, 384, 1152, True),
    "tiny stage 3 fc2": (4096, 1536, 384, False),
    "large stage 3 qkv": (4096, 576, 1728, True),
    "large stage 3 fc1": (4096, 576, 2304, True),
    "large stage 3 fc2": (4096, 2304, 576, False),
    "large stage 3 qkv, batch 4": (16384, 576, 1728, True),
    "memory attention": (4096, 256, 256, False),
}
# Windowed attention: side of the grid, channels of a head, heads, side of a window (0: global
# attention), whether queries are pooled.
WINDOWS = {
    "tiny 8 x 8": (256, 96, 1, 8, False),
    "tiny 14 x 14": (64, 96, 4, 14, False),
    "tiny global": (64, 96, 4, 0, False),
    "large 8 x 8": (256, 72, 2, 8, False),
    "large 16 x 16": (64, 72, 8, 16, False),
    "large global": (64, 72, 8, 0, False),
}


def run(context: Context) -> None:
    """Run the step."""
    if context.mode == "cpu":
        context.record("sweeps", status="not run: the kernels need a GPU")
        return
    _attention(context, "cross attention", 28736, 64)
    _attention(context, "self attention", 4096, 256)
    for name, (rows, inner, outer, norm) in PRODUCTS.items():
        _products(context, name, rows, inner, outer, norm)
    for name, shape in WINDOWS.items():
        _windows(context, name, *shape)


def _timed(context: Context, item: str, function: Callable[[], Any], flops: float) -> None:
    """Record microseconds and TFLOP/s of one call, from a CUDA graph of several calls."""

    def repeat() -> None:
        for _ in range(CALLS if context.cuda else 1):
            function()

    def measure() -> dict[str, Any]:
        timing = context.microseconds(context.graph(repeat), 5)
        if timing["us"] is None:
            return {"status": "compiled, not timed"}
        us = timing["us"] / CALLS
        return {
            "us": us,
            "low": timing["low"] / CALLS,
            "high": timing["high"] / CALLS,
            "tflops": flops / us / 1e6,
        }

    context.attempt(item, measure)


def _random(context: Context, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator).to(context.device, torch.bfloat16)


def _attention(context: Context, name: str, keys: int, values: int) -> None:
    """Time attention with 4096 queries of 256 channels.

    keys: number of keys. values: channels of the values.
    """
    from sam2_fast.kernels import attention as kernels

    shapes = ((1, 4096, 256), (1, keys, 256), (1, keys, values))
    q, k, v = (_random(context, *shape) for shape in shapes)
    flops = 2.0 * 4096 * keys * (256 + values)
    _forms(context, name, lambda: kernels.attend(q, k, v, 256), flops)
    padded_values = F.pad(v, (0, 256 - values))

    def library() -> Tensor:
        return F.scaled_dot_product_attention(q[None], k[None], padded_values[None])

    if context.cuda:
        _timed(context, f"{name}, torch", library, flops)


def _products(context: Context, name: str, rows: int, inner: int, outer: int, norm: bool) -> None:
    """Time a linear layer, with a preceding norm if `norm`. One of the forms calls the library."""
    from sam2_fast.kernels.linear import Layer, Norm, fold, linear, row_statistics

    shapes = ((rows, inner), (outer, inner), (outer,))
    x, weight, bias = (_random(context, *shape) for shape in shapes)
    layer = Layer(weight, bias)
    if norm:
        layer = fold(weight, bias, Norm(_random(context, inner), _random(context, inner), 1e-6))
    flops = 2.0 * rows * inner * outer
    _forms(context, name, lambda: linear(x, layer, row_statistics(x) if norm else None), flops)


def _windows(
    context: Context, name: str, side: int, head: int, heads: int, window: int, pool: bool
) -> None:
    from sam2_fast.kernels.window_attention import window_attention

    from sam2_fast.ops.window_attention import window_attention_reference

    qkv = _random(context, 1, side, side, 3 * head * heads)
    pad = _random(context, 3 * head * heads)
    keys = window * window if window else side * side
    flops = 4.0 * side * side * keys * head * heads
    arguments = (qkv, pad, heads, window, pool)
    _forms(context, f"window {name}", lambda: window_attention(*arguments), flops)
    if context.cuda:
        reference = partial(window_attention_reference, *arguments)
        _timed(context, f"window {name}, torch", reference, flops)


def _forms(context: Context, name: str, function: Callable[[], Tensor], flops: float) -> None:
    """Check and time a computation in each form of the kernel that it calls.

    The results of all forms must equal that of the default form.
    """
    default: list[Tensor] = []
    with choices.trying() as trial:
        context.attempt(f"{name} present form", lambda: default.append(function()), again=True)
    for point, (_, forms) in trial.choices.items():
        for form in forms:
            with choices.trying({point: form}):
                if context.cuda and default:
                    compare = partial(_compare, function, default[0])
                    context.attempt(f"{name} {form} result", compare)
                _timed(context, f"{name} {form}", function, flops)


def _compare(function: Callable[[], Tensor], expected: Tensor) -> dict[str, Any]:
    """Compare with a tolerance of a few bfloat16 units in the last place.

    Forms differ in the order of their sums.
    """
    exact = expected.float()
    worst = ((function().float() - exact).abs().max() / exact.abs().max()).item()
    return {"worst": worst, "status": "ok" if worst < 2**-6 else "WRONG"}
