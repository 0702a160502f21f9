"""Pictures of bytes to model input on a CPU: the kernel against torch (images) and Pillow (frames), for two sizes of video."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.timing import Options, Row, interleaved, require, rows
from sam2_fast.io.transforms import PIXEL_MEAN, PIXEL_STD
from sam2_fast.ops.preprocess import preprocess_frame, preprocess_images, resize_bicubic


def copy_rate() -> float:
    """GB/s, read and written, of a copy that no cache holds: what a pass over input and output from memory cannot exceed."""
    source, target = (torch.ones(256 << 20, dtype=torch.uint8) for _ in range(2))
    times = interleaved({"copy": lambda: target.copy_(source)}, Options(torch.device("cpu"), repeats=3))["copy"]
    return 2 * source.numel() / min(times) / 1e6


@torch.inference_mode()
def measure(options: Options) -> Iterator[Row]:
    """Pictures of 480 x 854 and 1080 x 1920 pixels to 1024 x 1024."""
    if options.device.type != "cpu":
        return
    size, limit = 64 if options.quick else 1024, copy_rate()
    for height, width in ((48, 85),) if options.quick else ((480, 854), (1080, 1920)):
        frame = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        ways: dict[str, tuple[str, Any, int]] = {
            "image": ("torch", lambda backend, x=frame[None]: preprocess_images(x, size, PIXEL_MEAN, PIXEL_STD, backend=backend), 12),
            "frame": ("Pillow", lambda backend, x=frame: preprocess_frame(x, size, PIXEL_MEAN, PIXEL_STD, backend=backend), 12),
            "frame, bytes only": ("Pillow", lambda backend, x=frame: resize_bicubic(x, size, backend=backend), 3),
        }
        for what, (peer, run, pixel_bytes) in ways.items():
            case = f"{what}, {height} x {width} to {size} x {size}"
            require(torch.equal(run("cpu"), run("torch")), case, "sam2_fast")
            times = interleaved({"sam2_fast": lambda run=run: run("cpu"), peer: lambda run=run: run("torch")}, options)
            ours, moved = statistics.median(times["sam2_fast"]), frame.numel() + pixel_bytes * size * size
            notes = {who: {"x ours": statistics.median(t) / ours} for who, t in times.items()}
            notes["sam2_fast"] |= {"GB/s": moved / ours / 1e6, "of copying": moved / ours / 1e6 / limit}
            yield from rows(case, times, notes)
