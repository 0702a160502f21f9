"""All forms of the kernels (`sam2_fast.kernels.choices`) beside what the libraries take for the
same work, as CUDA graphs of ten calls."""

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
PRODUCTS = {  # rows, inner, outer, with a norm: of the trunks and of memory attention
    "tiny stage 1 qkv": (65536, 96, 288, True),
    "tiny stage 3 qkv": (4096, 384, 1152, True),
    "tiny stage 3 fc2": (4096, 1536, 384, False),
    "large stage 3 qkv": (4096, 576, 1728, True),
    "large stage 3 fc1": (4096, 576, 2304, True),
    "large stage 3 fc2": (4096, 2304, 576, False),
    "large stage 3 qkv, batch 4": (16384, 576, 1728, True),
    "memory attention": (4096, 256, 256, False),
}
WINDOWS = {  # side of the grid, channels of a head, heads, window, pooled
    "tiny 8 x 8": (256, 96, 1, 8, False),
    "tiny 14 x 14": (64, 96, 4, 14, False),
    "tiny global": (64, 96, 4, 0, False),
    "large 8 x 8": (256, 72, 2, 8, False),
    "large 16 x 16": (64, 72, 8, 16, False),
    "large global": (64, 72, 8, 0, False),
}


def run(context: Context) -> None:
    """Entry point."""
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
    """Microseconds of one call, from a CUDA graph of several; TFLOP/s."""

    def several() -> None:
        for _ in range(CALLS if context.cuda else 1):
            function()

    def measure() -> dict[str, Any]:
        taken = context.microseconds(context.graph(several), 5)
        if taken["us"] is None:
            return {"status": "compiled, not timed"}
        us = taken["us"] / CALLS
        return {
            "us": us,
            "low": taken["low"] / CALLS,
            "high": taken["high"] / CALLS,
            "tflops": flops / us / 1e6,
        }

    context.attempt(item, measure)


def _random(context: Context, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator).to(context.device, torch.bfloat16)


def _attention(context: Context, name: str, keys: int, values: int) -> None:
    """4096 queries of 256 channels."""
    from sam2_fast.kernels import attention as kernels

    shapes = ((1, 4096, 256), (1, keys, 256), (1, keys, values))
    q, k, v = (_random(context, *shape) for shape in shapes)
    flops = 2.0 * 4096 * keys * (256 + values)
    _forms(context, name, lambda: kernels.attend(q, k, v, 256), flops)
    wide = F.pad(v, (0, 256 - values))

    def library() -> Tensor:
        return F.scaled_dot_product_attention(q[None], k[None], wide[None])

    if context.cuda:
        _timed(context, f"{name}, torch", library, flops)


def _products(context: Context, name: str, rows: int, inner: int, outer: int, norm: bool) -> None:
    """A linear layer, with the norm in front of it if there is one; the libraries are a form."""
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

    qkv, pad = _random(context, 1, side, side, 3 * head * heads), _random(context, 3 * head * heads)
    keys = window * window if window else side * side
    flops = 4.0 * side * side * keys * head * heads
    given = (qkv, pad, heads, window, pool)
    _forms(context, f"window {name}", lambda: window_attention(*given), flops)
    if context.cuda:
        reference = partial(window_attention_reference, *given)
        _timed(context, f"window {name}, torch", reference, flops)


def _forms(context: Context, name: str, function: Callable[[], Tensor], flops: float) -> None:
    """A computation in each form of the one choice that it meets. Each must give the same."""
    present: list[Tensor] = []
    with choices.trying() as trial:
        context.attempt(f"{name} present form", lambda: present.append(function()), again=True)
    for point, (_, forms) in trial.choices.items():
        for form in forms:
            with choices.trying({point: form}):
                if context.cuda and present:
                    compare = partial(_compare, function, present[0])
                    context.attempt(f"{name} {form} result", compare)
                _timed(context, f"{name} {form}", function, flops)


def _compare(function: Callable[[], Tensor], expected: Tensor) -> dict[str, Any]:
    """Other forms add in another order: within a few units of the last place of bfloat16."""
    exact = expected.float()
    worst = ((function().float() - exact).abs().max() / exact.abs().max()).item()
    return {"worst": worst, "status": "ok" if worst < 2**-6 else "WRONG"}
