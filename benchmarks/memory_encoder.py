"""The memory encoder on one and four objects, against torch's layers and the official package."""

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

DIM = 256
MEMORY_DIM = 64
HIDDEN = 1024  # channels of the MLP of a fuser block
CHANNELS = (1, 4, 16, 64, 256)  # of the mask downsampler


def operations(side: int, objects: int) -> int:
    """Multiplications and additions of convolutions and linear layers.

    The projection of the frame's features, which all objects share, is counted once.
    """
    tokens = side * side
    mask = sum(tokens * 4 ** (3 - i) * 9 * CHANNELS[i] * CHANNELS[i + 1] for i in range(4))
    blocks = 2 * tokens * (49 * DIM + 2 * DIM * HIDDEN)
    return 2 * (
        tokens * DIM * DIM + objects * (mask + tokens * DIM * (CHANNELS[-1] + MEMORY_DIM) + blocks)
    )


class ArgumentRecorder:
    """Stands in for the op and stores its arguments, so that torch's layers get the same ones."""

    def __init__(self) -> None:
        self.arguments: tuple[Any, ...] = ()

    def __call__(self, *arguments: Any) -> torch.Tensor:
        self.arguments = arguments
        return memory_encoder(*arguments)


def arguments_of(encode: Callable[[], Any]) -> tuple[Any, ...]:
    """The arguments with which `encode` calls the op."""
    from unittest.mock import patch

    recorder = ArgumentRecorder()
    with patch("sam2_fast.model.memory_encoder.memory_encoder", recorder):
        encode()
    return recorder.arguments


def encode_officially(
    official: Any, low: torch.Tensor, logits: torch.Tensor, size: int
) -> torch.Tensor:
    """The memory maps from the official encoder.

    logits: at the size of the decoder's output. Like `track_step` of the official package, this
    resizes them to the size of the image first.
    """
    tokens = low.expand(len(logits), -1, -1, -1).flatten(2).permute(2, 0, 1)
    masks = F.interpolate(logits, size=(size, size), mode="bilinear", align_corners=False)
    presence = torch.ones(len(logits), 1, device=logits.device)
    maps = official._encode_new_memory([tokens], [tuple(low.shape[2:])], masks, presence, False)[0]
    return maps.flatten(2).mT


@torch.inference_mode()
def measure(options: Options) -> Iterator[Case]:
    """Mask logits at a quarter of the image's size to memory maps.

    In bfloat16 autocast and on a CPU also in float32. On a GPU float32 runs on torch's layers, so
    there is nothing to compare.
    """
    size = 256 if options.quick else 1024
    for autocast in (False, True) if options.device.type == "cpu" else (True,):
        peak = matrix_peak(options.device, torch.bfloat16 if autocast else torch.float32)
        for count in (1, 4):
            case = f"tiny {size}, {count} objects, {'bfloat16 autocast' if autocast else 'float32'}"
            yield Case(case, encoding, (size, count, autocast, peak, options))


def models(size: int, device: torch.device, with_official: bool) -> tuple[Any, Any]:
    """This library's model, and the official one or None."""
    generator = torch.Generator().manual_seed(0)
    ours = build_sam2("tiny", device=device, seed=0, image_size=size)
    # The initial values of gamma are so small that the blocks would not affect the result.
    for block in ours.memory_encoder.fuser.layers:
        block.gamma.copy_(torch.randn(DIM, generator=generator).to(device) * 0.5)
    return ours, peers.official("tiny", ours.state_dict(), size, device) if with_official else None


@torch.inference_mode()
def encoding(
    case: str, size: int, count: int, autocast: bool, peak: float, options: Options
) -> Iterator[Row]:
    """Check the errors, then time one case.

    autocast: whether it runs under bfloat16 autocast. peak: GFLOP/s of a matrix product.
    """
    device = options.device
    side = size // 16
    generator = torch.Generator().manual_seed(0)
    ours, official = models(size, device, "official" in (options.peers or ("official",)))
    low = (
        torch.randn(1, DIM, side, side, generator=generator)
        .to(device)
        .contiguous(memory_format=torch.channels_last)
    )
    logits = torch.randn(count, 1, 4 * side, 4 * side, generator=generator).to(device) * 5

    def encode(m: torch.Tensor = logits) -> torch.Tensor:
        return ours.encode_memory(low, m, torch.ones(len(m), 1, device=device), False)

    functions: dict[str, Callable[[], torch.Tensor]] = {"sam2_fast": encode}
    arguments = arguments_of(encode)
    functions["torch"] = lambda x=arguments: memory_encoder_reference(*x)
    if official is not None:
        functions["official"] = lambda m=logits: encode_officially(official, low, m, size)
    exact = memory_encoder_reference(*cast(arguments, torch.float64))
    with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        error = {name: rms_error(function(), exact) for name, function in functions.items()}
        for peer in ("torch", "official"):
            require(error["sam2_fast"] <= 2 * error.get(peer, error["torch"]), case, "sam2_fast")
        times = interleaved(functions, options)
    yield from rows(case, times, rates(times, operations(side, count) / 1e9, peak, error))
