"""The memory encoder on a CPU: masks of one object and of four on one frame, against torch's layers
and the official package.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks import peers
from benchmarks.timing import (
    Case,
    Options,
    Row,
    interleaved,
    matrix_peak,
    rates,
    require,
    rms_error,
    rows,
)
from sam2_fast.build_sam import build_sam2
from sam2_fast.ops.memory_encoder import memory_encoder, memory_encoder_reference
from sam2_fast.proving.errors import cast

DIM, NARROW, HIDDEN, CHANNELS = 256, 64, 1024, (1, 4, 16, 64, 256)


def operations(side: int, objects: int) -> int:
    """Multiplications and additions of convolutions and linear layers; what objects share is
    counted once.
    """
    tokens = side * side
    mask = sum(tokens * 4 ** (3 - i) * 9 * CHANNELS[i] * CHANNELS[i + 1] for i in range(4))
    blocks = 2 * tokens * (49 * DIM + 2 * DIM * HIDDEN)
    return 2 * (
        tokens * DIM * DIM + objects * (mask + tokens * DIM * (CHANNELS[-1] + NARROW) + blocks)
    )


class Recorded:
    """The arguments that the model passes to the op, so that torch's layers get the same."""

    def __init__(self) -> None:
        self.arguments: tuple[Any, ...] = ()

    def __call__(self, *arguments: Any) -> torch.Tensor:
        self.arguments = arguments
        return memory_encoder(*arguments)


def arguments_of(encode: Callable[[], Any]) -> tuple[Any, ...]:
    """What `encode` calls the op with."""
    from unittest.mock import patch

    recorded = Recorded()
    with patch("sam2_fast.model.memory_encoder.memory_encoder", recorded):
        encode()
    return recorded.arguments


def official(theirs: Any, low: torch.Tensor, logits: torch.Tensor, size: int) -> torch.Tensor:
    """The official memory of masks at the decoder's size, which its `track_step` brings to the
    image's first.
    """
    tokens = low.expand(len(logits), -1, -1, -1).flatten(2).permute(2, 0, 1)
    masks = F.interpolate(logits, size=(size, size), mode="bilinear", align_corners=False)
    presence = torch.ones(len(logits), 1, device=logits.device)
    return (
        theirs._encode_new_memory([tokens], [tuple(low.shape[2:])], masks, presence, False)[0]
        .flatten(2)
        .mT
    )


@torch.inference_mode()
def measure(options: Options) -> Iterator[Case]:
    """Mask logits of a quarter of the image's size to memory maps, bfloat16 autocast, and float32
    on a CPU (elsewhere torch's layers).
    """
    size = 256 if options.quick else 1024
    for narrow in (False, True) if options.device.type == "cpu" else (True,):
        best = matrix_peak(options.device, torch.bfloat16 if narrow else torch.float32)
        for count in (1, 4):
            case = f"tiny {size}, {count} objects, {'bfloat16 autocast' if narrow else 'float32'}"
            yield Case(case, encoding, (size, count, narrow, best, options))


def models(size: int, device: torch.device, with_official: bool) -> tuple[Any, Any]:
    """Ours, and the official one or None."""
    generator = torch.Generator().manual_seed(0)
    ours = build_sam2("tiny", device=device, seed=0, image_size=size)
    for block in (
        ours.memory_encoder.fuser.layers
    ):  # as trained: at their first values the blocks would not show in the result
        block.gamma.copy_(torch.randn(DIM, generator=generator).to(device) * 0.5)
    return ours, peers.official("tiny", ours.state_dict(), size, device) if with_official else None


@torch.inference_mode()
def encoding(
    case: str, size: int, count: int, narrow: bool, best: float, options: Options
) -> Iterator[Row]:
    """Errors, then times; narrow: under bfloat16 autocast; `best`: GFLOP/s of a matrix product."""
    device, side, generator = options.device, size // 16, torch.Generator().manual_seed(0)
    ours, theirs = models(size, device, "official" in (options.peers or ("official",)))
    low = (
        torch.randn(1, DIM, side, side, generator=generator)
        .to(device)
        .contiguous(memory_format=torch.channels_last)
    )
    logits = torch.randn(count, 1, 4 * side, 4 * side, generator=generator).to(device) * 5

    def encode(m: torch.Tensor = logits) -> torch.Tensor:
        return ours.encode_memory(low, m, torch.ones(len(m), 1, device=device), False)

    functions: dict[str, Callable[[], torch.Tensor]] = {"sam2_fast": encode}
    given = arguments_of(encode)
    functions["torch"] = lambda g=given: memory_encoder_reference(*g)
    if theirs is not None:
        functions["official"] = lambda m=logits: official(theirs, low, m, size)
    exact = memory_encoder_reference(*cast(given, torch.float64))
    with torch.autocast(device.type, torch.bfloat16, enabled=narrow):
        error = {who: rms_error(function(), exact) for who, function in functions.items()}
        for peer in ("torch", "official"):
            require(error["sam2_fast"] <= 2 * error.get(peer, error["torch"]), case, "sam2_fast")
        times = interleaved(functions, options)
    yield from rows(case, times, rates(times, operations(side, count) / 1e9, best, error))
