"""Pictures of bytes to model input: the kernel against torch (images) and Pillow (frames), for two sizes of video."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.timing import Options, Row, interleaved, require, rows
from sam2_fast.io.transforms import PIXEL_MEAN, PIXEL_STD
from sam2_fast.ops.preprocess import preprocess_frame, preprocess_images, resize_bicubic


def copy_rate(device: torch.device) -> float:
    """GB/s, read and written, of a copy that no cache holds: what a pass over input and output from memory cannot exceed."""
    source, target = (torch.ones(256 << 20, dtype=torch.uint8, device=device) for _ in range(2))
    times = interleaved({"copy": lambda: target.copy_(source)}, Options(device, repeats=3))["copy"]
    return 2 * source.numel() / min(times) / 1e6


def exact_image(frame: torch.Tensor, size: int) -> torch.Tensor:
    """The image path in float64, [1, 3, size, size]."""
    planes = frame.permute(2, 0, 1)[None].double() / 255
    resized = F.interpolate(planes, (size, size), mode="bilinear", align_corners=False, antialias=True)
    mean, std = (frame.new_tensor(values, dtype=torch.float64)[:, None, None] for values in (PIXEL_MEAN, PIXEL_STD))
    return (resized - mean) / std


def _error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return (found - exact).square().mean().sqrt().item()


@torch.inference_mode()
def measure(options: Options) -> Iterator[Row]:
    """Pictures of 480 x 854 and 1080 x 1920 pixels to 1024 x 1024."""
    size, limit = 64 if options.quick else 1024, copy_rate(options.device)
    for height, width in ((48, 85),) if options.quick else ((480, 854), (1080, 1920)):
        frame = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).to(options.device)
        ways: dict[str, tuple[str, Any, int]] = {
            "image": ("torch", lambda backend, x=frame[None]: preprocess_images(x, size, PIXEL_MEAN, PIXEL_STD, backend=backend), 12),
            "frame": ("Pillow", lambda backend, x=frame: preprocess_frame(x, size, PIXEL_MEAN, PIXEL_STD, backend=backend), 12),
            "frame, bytes only": ("Pillow", lambda backend, x=frame: resize_bicubic(x, size, backend=backend), 3),
        }
        for what, (peer, run, pixel_bytes) in ways.items():
            case = f"{what}, {height} x {width} to {size} x {size}"
            mine, theirs = run("auto"), run("torch")
            if what == "image" and mine.is_cuda:  # torch rounds otherwise there
                exact = exact_image(frame, size)
                require(_error(mine, exact) <= 2 * _error(theirs, exact), case, "sam2_fast")
            else:
                require(torch.equal(mine, theirs), case, "sam2_fast")
            times = interleaved({"sam2_fast": lambda run=run: run("auto"), peer: lambda run=run: run("torch")}, options)
            ours, moved = statistics.median(times["sam2_fast"]), frame.numel() + pixel_bytes * size * size
            notes = {who: {"x ours": statistics.median(t) / ours} for who, t in times.items()}
            notes["sam2_fast"] |= {"GB/s": moved / ours / 1e6, "of copying": moved / ours / 1e6 / limit}
            yield from rows(case, times, notes)
