"""The mask decoder on one click and on 64, against torch's layers and the official package."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

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
from sam2_fast.ops.mask_decoder import mask_decoder
from sam2_fast.ops.mask_decoder.reference import mask_decoder_reference
from sam2_fast.types import Features, Points


def operations(side: int, prompts: int) -> int:
    """Multiplications and additions of the linear layers on image tokens.

    The projections of the first layer that all prompts share are counted once.
    """
    dim = 256
    tokens = side * side
    half = dim * dim // 2
    first = 3 * half  # query, key and value projections of the first layer
    # The output projection of the first layer, all projections of the second, keys and values of
    # the final attention.
    others = 7 * half
    upscaling = dim * dim + 4 * (dim // 4) * (dim // 2)
    return 2 * tokens * (first + prompts * (others + upscaling))


class ArgumentRecorder:
    """Stands in for the op and stores its arguments, so that torch's layers get the same ones."""

    def __init__(self) -> None:
        self.arguments: tuple[Any, ...] = ()

    def __call__(self, *arguments: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        self.arguments = arguments
        return mask_decoder(*arguments)


def arguments_of(decode: Callable[[], Any]) -> tuple[Any, ...]:
    """The arguments with which `decode` calls the op."""
    from unittest.mock import patch

    recorder = ArgumentRecorder()
    with patch("sam2_fast.model.mask_decoder.mask_decoder", recorder):
        decode()
    return recorder.arguments


def decode_officially(
    official: Any, low: torch.Tensor, features: Features, points: Points
) -> torch.Tensor:
    """Three masks for each click from the official decoder."""
    sparse, dense = official.sam_prompt_encoder(
        points=(points.coords, points.labels), boxes=None, masks=None
    )
    return official.sam_mask_decoder(
        image_embeddings=low,
        image_pe=official.sam_prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=True,
        repeat_image=len(points.coords) > 1,
        high_res_features=[features.high, features.mid],
    )[0]


@torch.inference_mode()
def measure(options: Options) -> Iterator[Case]:
    """Clicks to three masks each, in bfloat16 autocast and on a CPU also in float32.

    On a GPU float32 runs on torch's layers, so there is nothing to compare.
    """
    size = 256 if options.quick else 1024
    for autocast in (False, True) if options.device.type == "cpu" else (True,):
        peak = matrix_peak(options.device, torch.bfloat16 if autocast else torch.float32)
        for count in (1, 64):
            case = f"tiny {size}, {count} clicks, {'bfloat16 autocast' if autocast else 'float32'}"
            yield Case(case, decoding, (size, count, autocast, peak, options))


def models(size: int, device: torch.device, with_official: bool) -> tuple[Any, Any]:
    """This library's model, and the official one or None."""
    ours = build_sam2("tiny", device=device, seed=0, image_size=size)
    return ours, peers.official("tiny", ours.state_dict(), size, device) if with_official else None


@torch.inference_mode()
def decoding(
    case: str, size: int, count: int, autocast: bool, peak: float, options: Options
) -> Iterator[Row]:
    """Check the errors, then time one case.

    autocast: whether it runs under bfloat16 autocast. peak: GFLOP/s of a matrix product.
    """
    device = options.device
    side = size // 16
    generator = torch.Generator().manual_seed(0)
    ours, official = models(size, device, "official" in (options.peers or ("official",)))

    def channels_last(channels: int, side: int) -> torch.Tensor:
        x = torch.randn(1, channels, side, side, generator=generator).to(device)
        return x.contiguous(memory_format=torch.channels_last)

    low = channels_last(256, side)
    mid = channels_last(64, 2 * side)
    high = channels_last(32, 4 * side)
    features = Features(low, mid, high)
    clicks = torch.rand(count, 1, 2, generator=generator) * size
    points = Points(clicks.to(device), torch.ones(count, 1, dtype=torch.int32, device=device))
    decode = lambda p=points: ours.decode(low, features, p, None, True).logits  # noqa: E731
    functions: dict[str, Callable[[], torch.Tensor]] = {"sam2_fast": decode}
    arguments = arguments_of(decode)
    functions["torch"] = lambda x=arguments: mask_decoder_reference(*x)[0]
    if official is not None:
        functions["official"] = lambda p=points: decode_officially(official, low, features, p)
    exact = functions["torch"]().double()
    with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        error = {name: rms_error(function(), exact) for name, function in functions.items()}
        # The reference is computed in float32, so errors in float32 need a tolerance.
        slack = 0.0 if autocast else 1e-6 * exact.square().mean().sqrt().item()
        require(error["sam2_fast"] <= max(2 * error["torch"], slack), case, "sam2_fast")
        times = interleaved(functions, options)
    yield from rows(case, times, rates(times, operations(side, count) / 1e9, peak, error))
