"""Each kind of Hiera block of the tiny, base+ and large trunks, against torch's layers."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.timing import (
    Case,
    Options,
    Row,
    dtypes,
    interleaved,
    matrix_peak,
    require,
    rms_error,
    rows,
    to_device,
)
from sam2_fast.ops.core.layout import Leaf
from sam2_fast.ops.hiera_block import HieraBlockWeights, hiera_block, hiera_block_reference
from sam2_fast.proving.errors import cast

# Name, tokens along a side, stage of the input, output channels over input channels, side of a
# window (0: global attention), whether queries are pooled.
KINDS = (
    ("8 x 8", 256, 0, 1, 8, False),
    ("8 x 8 pooled", 256, 0, 2, 8, True),
    ("4 x 4", 128, 1, 1, 4, False),
    ("4 x 4 pooled", 128, 1, 2, 4, True),
    ("14 x 14", 64, 2, 1, 14, False),
    ("global", 64, 2, 1, 0, False),
    ("14 x 14 pooled", 64, 2, 2, 14, True),
    ("7 x 7", 32, 3, 1, 7, False),
)
# Channels of the first stage, channels of a head.
TRUNKS = {
    "tiny": (96, 96),
    "base+": (112, 56),
    "large": (144, 72),
}


def operations(side: int, dim: int, out: int, window: int, pool: bool) -> int:
    """Multiplications and additions that the result needs, without those of padding."""
    tokens = side * side
    after = tokens // 4 if pool else tokens
    keys = min(window * window, tokens) if window else tokens
    linear = tokens * dim * out * (4 if pool else 3) + after * out * out * 9
    return 2 * (linear + 2 * after * keys * out)


def weights_of(dim: int, out: int, pool: bool, dtype: torch.dtype) -> HieraBlockWeights:
    """Random parameters of a block, scaled so that its values stay near one."""
    torch.manual_seed(0)

    def weight(leaf: Leaf, shape: tuple[int, ...]) -> torch.Tensor:
        if leaf.name.startswith("norm"):
            return torch.full(shape, float(leaf.name.endswith("weight")))
        return torch.randn(shape) * (shape[1] ** -0.5 if leaf.matrix else 0.1)

    return HieraBlockWeights.build(weight, count=int(pool), C=dim, D=out, F=4 * out).to(dtype)


@torch.inference_mode()
def measure(options: Options) -> Iterator[Case]:
    """Every kind of block in each dtype of the device; with `quick` the tiny trunk only."""
    for dtype in dtypes(options):
        peak = matrix_peak(options.device, dtype)
        for trunk, (first, head) in list(TRUNKS.items())[: 1 if options.quick else None]:
            for kind, side, stage, factor, window, pool in KINDS:
                side = side // 4 if options.quick else side
                dim = first << stage
                out = dim * factor
                case = f"{trunk}, {kind}, {side}^2 x {dim}, {str(dtype)[6:]}"
                yield Case(
                    case, block, (side, dim, out, out // head, window, pool, dtype, peak, options)
                )


@torch.inference_mode()
def block(
    case: str,
    side: int,
    dim: int,
    out: int,
    heads: int,
    window: int,
    pool: bool,
    dtype: torch.dtype,
    peak: float,
    options: Options,
) -> Iterator[Row]:
    """Check and time one kind of block. peak: GFLOP/s of a matrix product."""
    x = torch.randn(1, side, side, dim).to(dtype)
    weights = weights_of(dim, out, pool, dtype)
    arguments = to_device((x, weights, heads, window, pool), options.device)
    functions: dict[str, Callable[[], torch.Tensor]] = {
        "sam2_fast": partial(hiera_block, *arguments),
        "torch": partial(hiera_block_reference, *arguments, 1e-6),
    }
    exact = hiera_block_reference(*cast(arguments, torch.float64), 1e-6)
    error = {name: rms_error(function(), exact) for name, function in functions.items()}
    require(error["sam2_fast"] <= 2 * error["torch"], case, "sam2_fast")
    del exact
    if options.device.type == "cuda" and out <= 160:
        functions["MLP in three launches"] = partial(_with_separate_mlp_launches, *arguments)
    times = interleaved(functions, options)
    ours = statistics.median(times["sam2_fast"])
    flops = operations(side, dim, out, window, pool)

    def notes(median: float) -> dict[str, float]:
        return {
            "x ours": median / ours,
            "GFLOP/s": flops / median / 1e6,
            "% of matrix peak": flops / median / 1e4 / peak,
        }

    yield from rows(case, times, {name: notes(statistics.median(t)) for name, t in times.items()})


def _with_separate_mlp_launches(*arguments: Any) -> torch.Tensor:
    """The block with one launch each for the MLP's norm, hidden layer and output."""
    with patch("sam2_fast.kernels.hiera_block.MLP_CHANNELS", 0):
        return hiera_block(*arguments)
