"""uint8 pictures to model input, for two sizes, against torch (images) and Pillow (frames)."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F

from benchmarks.timing import Case, Options, Row, interleaved, require, rows
from sam2_fast.io.transforms import PIXEL_MEAN, PIXEL_STD
from sam2_fast.ops.preprocess import preprocess_frame, preprocess_images, resize_bicubic


def _image(frame: torch.Tensor, size: int, backend: str) -> torch.Tensor:
    return preprocess_images(frame[None], size, PIXEL_MEAN, PIXEL_STD, backend=backend)


def _frame(frame: torch.Tensor, size: int, backend: str) -> torch.Tensor:
    return preprocess_frame(frame, size, PIXEL_MEAN, PIXEL_STD, backend=backend)


def _bytes(frame: torch.Tensor, size: int, backend: str) -> torch.Tensor:
    return resize_bicubic(frame, size, backend=backend)


CONVERSIONS: dict[str, tuple[str, Callable[..., torch.Tensor], int]] = {
    "image": ("torch", _image, 12),
    "frame": ("Pillow", _frame, 12),
    "frame, bytes only": ("Pillow", _bytes, 3),
}
"""Name -> the peer, the conversion, and bytes written per pixel."""


def copy_rate(device: torch.device) -> float:
    """GB/s, read and written, of a copy that exceeds all caches.

    This is the limit of a pass that reads its input from memory and writes its output to memory.
    """
    source, target = (torch.ones(256 << 20, dtype=torch.uint8, device=device) for _ in range(2))
    times = interleaved({"copy": lambda: target.copy_(source)}, Options(device, repeats=3))["copy"]
    return 2 * source.numel() / min(times) / 1e6


def exact_image(frame: torch.Tensor, size: int) -> torch.Tensor:
    """An image as model input, computed in float64: [1, 3, size, size]."""
    planes = frame.permute(2, 0, 1)[None].double() / 255
    resized = F.interpolate(
        planes, (size, size), mode="bilinear", align_corners=False, antialias=True
    )
    mean, std = (
        frame.new_tensor(values, dtype=torch.float64)[:, None, None]
        for values in (PIXEL_MEAN, PIXEL_STD)
    )
    return (resized - mean) / std


def _error(output: torch.Tensor, exact: torch.Tensor) -> float:
    return (output - exact).square().mean().sqrt().item()


@torch.inference_mode()
def measure(options: Options) -> Iterator[Case]:
    """Pictures of 480 x 854 and 1080 x 1920 pixels to 1024 x 1024."""
    size = 64 if options.quick else 1024
    limit = copy_rate(options.device)
    for height, width in ((48, 85),) if options.quick else ((480, 854), (1080, 1920)):
        for name in CONVERSIONS:
            case = f"{name}, {height} x {width} to {size} x {size}"
            yield Case(case, conversion, (name, height, width, size, limit, options))


@torch.inference_mode()
def conversion(
    case: str, name: str, height: int, width: int, size: int, limit: float, options: Options
) -> Iterator[Row]:
    """Check and time one of `CONVERSIONS`. limit: GB/s of a copy."""
    frame = torch.randint(
        0, 256, (height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    ).to(options.device)
    peer, convert, pixel_bytes = CONVERSIONS[name]
    run = partial(convert, frame, size)
    output = run("auto")
    reference = run("torch")
    if name == "image" and output.is_cuda:  # torch rounds differently on a GPU
        exact = exact_image(frame, size)
        require(_error(output, exact) <= 2 * _error(reference, exact), case, "sam2_fast")
    else:
        require(torch.equal(output, reference), case, "sam2_fast")
    times = interleaved({"sam2_fast": partial(run, "auto"), peer: partial(run, "torch")}, options)
    ours = statistics.median(times["sam2_fast"])
    rate = (frame.numel() + pixel_bytes * size * size) / ours / 1e6
    notes = {name: {"x ours": statistics.median(t) / ours} for name, t in times.items()}
    notes["sam2_fast"] |= {"GB/s": rate, "of copying": rate / limit}
    yield from rows(case, times, notes)
