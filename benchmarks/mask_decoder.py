"""The mask decoder: one click and 64 on an encoded image, against torch's layers and the official
package.
"""

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
    """Multiplications and additions of the linear layers on image tokens; what the first layer
    shares is counted once.
    """
    dim, tokens = 256, side * side
    half = dim * dim // 2
    # Q, k, v; then out, the second layer's q, k, v, out, and the last k, v.
    first, others = (
        3 * half,
        7 * half,
    )
    upscaling = dim * dim + 4 * (dim // 4) * (dim // 2)
    return 2 * tokens * (first + prompts * (others + upscaling))


class Recorded:
    """The arguments that the model passes to the op, so that torch's layers get the same."""

    def __init__(self) -> None:
        self.arguments: tuple[Any, ...] = ()

    def __call__(self, *arguments: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        self.arguments = arguments
        return mask_decoder(*arguments)


def arguments_of(decode: Callable[[], Any]) -> tuple[Any, ...]:
    """What `decode` calls the op with."""
    from unittest.mock import patch

    recorded = Recorded()
    with patch("sam2_fast.model.mask_decoder.mask_decoder", recorded):
        decode()
    return recorded.arguments


def official(theirs: Any, low: torch.Tensor, features: Features, points: Points) -> torch.Tensor:
    """Three masks of each click from the official decoder."""
    sparse, dense = theirs.sam_prompt_encoder(
        points=(points.coords, points.labels), boxes=None, masks=None
    )
    return theirs.sam_mask_decoder(
        image_embeddings=low,
        image_pe=theirs.sam_prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=True,
        repeat_image=len(points.coords) > 1,
        high_res_features=[features.high, features.mid],
    )[0]


@torch.inference_mode()
def measure(options: Options) -> Iterator[Case]:
    """Points to three masks each, bfloat16 autocast, and float32 on a CPU (elsewhere that is
    torch's layers).
    """
    size = 256 if options.quick else 1024
    for narrow in (False, True) if options.device.type == "cpu" else (True,):
        best = matrix_peak(options.device, torch.bfloat16 if narrow else torch.float32)
        for count in (1, 64):
            case = f"tiny {size}, {count} clicks, {'bfloat16 autocast' if narrow else 'float32'}"
            yield Case(case, decoding, (size, count, narrow, best, options))


def models(size: int, device: torch.device, with_official: bool) -> tuple[Any, Any]:
    """Ours, and the official one or None."""
    ours = build_sam2("tiny", device=device, seed=0, image_size=size)
    return ours, peers.official("tiny", ours.state_dict(), size, device) if with_official else None


@torch.inference_mode()
def decoding(
    case: str, size: int, count: int, narrow: bool, best: float, options: Options
) -> Iterator[Row]:
    """Errors, then times; narrow: under bfloat16 autocast; `best`: GFLOP/s of a matrix product."""
    device, side, last = options.device, size // 16, torch.channels_last
    generator = torch.Generator().manual_seed(0)
    ours, theirs = models(size, device, "official" in (options.peers or ("official",)))
    shapes = ((256, side), (64, 2 * side), (32, 4 * side))
    low, mid, high = (
        torch.randn(1, c, s, s, generator=generator).to(device).contiguous(memory_format=last)
        for c, s in shapes
    )
    features = Features(low, mid, high)
    clicks = torch.rand(count, 1, 2, generator=generator) * size
    points = Points(clicks.to(device), torch.ones(count, 1, dtype=torch.int32, device=device))
    decode = lambda p=points: ours.decode(low, features, p, None, True).logits  # noqa: E731
    functions: dict[str, Callable[[], torch.Tensor]] = {"sam2_fast": decode}
    given = arguments_of(decode)
    functions["torch"] = lambda g=given: mask_decoder_reference(*g)[0]
    if theirs is not None:
        functions["official"] = lambda p=points: official(theirs, low, features, p)
    exact = functions["torch"]().double()
    with torch.autocast(device.type, torch.bfloat16, enabled=narrow):
        error = {who: rms_error(function(), exact) for who, function in functions.items()}
        # The yardstick is itself float32.
        slack = 0.0 if narrow else 1e-6 * exact.square().mean().sqrt().item()
        require(error["sam2_fast"] <= max(2 * error["torch"], slack), case, "sam2_fast")
        times = interleaved(functions, options)
    yield from rows(case, times, rates(times, operations(side, count) / 1e9, best, error))
