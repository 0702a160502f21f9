"""Tile sizes of the kernels beside what the libraries take for the same work, all as CUDA graphs of
ten calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.first_light.context import Context

CALLS = 10
ATTEND_CROSS = (
    (128, 64, 8, 2),
    (128, 64, 8, 3),
    (128, 128, 8, 2),
    (256, 64, 16, 2),
    (64, 64, 4, 2),
    (64, 128, 4, 2),
)
"""(queries, keys, warps, stages) for values of 64 channels."""
ATTEND_SELF = ((64, 64, 8, 2), (128, 64, 8, 2), (64, 64, 4, 2), (64, 32, 4, 3))
"""The same for values of 256 channels."""
LINEAR = (
    (128, 128, 64, 8, 3),
    (64, 128, 64, 4, 4),
    (128, 64, 64, 4, 3),
    (128, 256, 64, 8, 3),
    (64, 64, 64, 4, 4),
)
"""(rows, columns, channels, warps, stages)."""
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
    _attention(context, "cross attention", 28736, 64, ATTEND_CROSS)
    _attention(context, "self attention", 4096, 256, ATTEND_SELF)
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


@contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, lambda *_: value)
    try:
        yield
    finally:
        setattr(module, name, before)


def _random(context: Context, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator).to(context.device, torch.bfloat16)


def _attention(
    context: Context, name: str, keys: int, values: int, tiles: tuple[tuple[int, ...], ...]
) -> None:
    """4096 queries of 256 channels. Each choice of tiles must give what the present one gives."""
    from sam2_fast.kernels import rope_attention as kernels

    shapes = ((1, 4096, 256), (1, keys, 256), (1, keys, values))
    q, k, v = (_random(context, *shape) for shape in shapes)
    flops = 2.0 * 4096 * keys * (256 + values)

    def ours() -> Tensor:
        return kernels.attend(q, k, v, 256)

    _tiles(context, name, ours, (kernels, "blocks", tiles), flops)
    wide = F.pad(v, (0, 256 - values))

    def library() -> Tensor:
        return F.scaled_dot_product_attention(q[None], k[None], wide[None])

    if context.cuda:
        _timed(context, f"{name}, torch", library, flops)


def _products(context: Context, name: str, rows: int, inner: int, outer: int, norm: bool) -> None:
    """The present kernel with each tile, and layer norm and product of the libraries."""
    from sam2_fast.kernels import hiera_block as kernels

    shapes = ((rows, inner), (outer, inner), (outer,))
    x, weight, bias = (_random(context, *shape) for shape in shapes)
    gain, offset = _random(context, inner), _random(context, inner)
    flops = 2.0 * rows * inner * outer

    def ours() -> Tensor:
        moments = (kernels.moments(x, 1e-6), gain, offset) if norm else None
        return kernels.linear(x, weight, bias, moments)

    def library() -> Tensor:
        return F.linear(F.layer_norm(x, (inner,), gain, offset, 1e-6) if norm else x, weight, bias)

    _tiles(context, name, ours, (kernels, "tiles", LINEAR), flops)
    if context.cuda:
        _timed(context, f"{name}, libraries", library, flops)


def _windows(
    context: Context, name: str, side: int, head: int, heads: int, window: int, pool: bool
) -> None:
    from sam2_fast.kernels.window_attention import window_attention

    from sam2_fast.ops.window_attention import window_attention_reference

    qkv, pad = _random(context, 1, side, side, 3 * head * heads), _random(context, 3 * head * heads)
    keys = window * window if window else side * side
    flops = 4.0 * side * side * keys * head * heads
    _timed(
        context, f"window {name}", lambda: window_attention(qkv, pad, heads, window, pool), flops
    )
    if context.cuda:

        def reference() -> Tensor:
            return window_attention_reference(qkv, pad, heads, window, pool)

        _timed(context, f"window {name}, torch", reference, flops)


def _tiles(
    context: Context,
    name: str,
    function: Callable[[], Tensor],
    choices: tuple[Any, str, Sequence[tuple[int, ...]]],
    flops: float,
) -> None:
    """A kernel with each choice of tiles. choices: its module, the function that chooses, tiles."""
    module, chooser, tiles = choices
    present: list[Tensor] = []
    context.attempt(f"{name} present tiles", lambda: present.append(function()), again=True)
    for tile in tiles:
        with _replaced(module, chooser, tile):
            if context.cuda and present:
                compare = partial(_compare, function, present[0])
                context.attempt(f"{name} {tile} result", compare)
            _timed(context, f"{name} {tile}", function, flops)


def _compare(function: Callable[[], Tensor], expected: Tensor) -> dict[str, Any]:
    """Other tiles add in another order: within a few units of the last place of bfloat16."""
    exact = expected.float()
    worst = ((function().float() - exact).abs().max() / exact.abs().max()).item()
    return {"worst": worst, "status": "ok" if worst < 2**-6 else "WRONG"}
