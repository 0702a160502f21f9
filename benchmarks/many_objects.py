"""Many objects in a 4K video, on a CPU: time of the prompts, and time and memory of `track`.

Prompts are timed with and without the masks of all objects that each of them returns, as processor
time; their masks must be equal. `sam2-fast track` tracks two frames in a process of its own, with
the model nano, run lengths and an overlay: wall clock, processor time, and the peak of its memory.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.timing import Case, Options, Row, require
from sam2_fast.build_sam import build_sam2_video_predictor

HEIGHT, WIDTH = 2160, 3840
COUNTS = (1, 10, 100)
ALL_MASKS_UP_TO = 10
"""Prompts that return all masks are timed up to this number of objects: 100 need minutes."""


def boxes(count: int) -> list[list[int]]:
    """`count` boxes (x0, y0, x1, y1) in pixels, ten in a row."""
    corners = [(100 + 370 * (i % 10), 60 + 205 * (i // 10)) for i in range(count)]
    return [[x, y, x + 200, y + 150] for x, y in corners]


def frames() -> np.ndarray:
    """Two frames [2, H, W, 3] uint8 of smooth noise."""
    noise = np.random.default_rng(0).integers(0, 255, (2, HEIGHT // 40, WIDTH // 40, 3), np.uint8)
    return np.stack([np.asarray(Image.fromarray(x).resize((WIDTH, HEIGHT))) for x in noise])


def measure(options: Options) -> Iterator[Case]:
    """1, 10 and 100 objects; with `--quick` 1 and 10."""
    counts = COUNTS[:2] if options.quick else COUNTS
    for count in counts:
        yield Case(f"prompts of {count} objects", prompts, (count, options))
    for count in counts:
        yield Case(f"track {count} objects", command_line, (count, options))


def prompts(case: str, count: int, options: Options) -> Iterator[Row]:
    """Processor time of the prompts of all objects."""
    model = build_sam2_video_predictor("nano", device="cpu")
    video = frames()
    ways = {"without masks": False} | ({"all masks": True} if count <= ALL_MASKS_UP_TO else {})
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(min(options.repeats, 5)):
        for name, need_output in ways.items():
            state = model.init_state(video)
            start = time.process_time()
            last = _prompt(model, state, count, need_output)
            times[name].append((time.process_time() - start) * 1e3)
            if need_output:
                masks = torch.stack([mask for _, mask in model.frame_masks(state, 0)])
                require(torch.equal(masks, last[:, 0] > 0), case, name)
    for name, values in times.items():
        per_object = {"ms per object": statistics.median(values) / count}
        yield Row(case, name, statistics.median(values), min(values), max(values), per_object)


def _prompt(model: Any, state: Any, count: int, need_output: bool) -> torch.Tensor:
    for number, box in enumerate(boxes(count), start=1):
        _, _, masks = model.add_new_points_or_box(
            state, 0, number, box=box, need_output=need_output
        )
    return masks


def command_line(case: str, count: int, options: Options) -> Iterator[Row]:
    """Wall clock of `sam2-fast track` on two frames, with its processor time and peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        for number, frame in enumerate(frames()):
            Image.fromarray(frame).save(Path(folder) / f"{number}.jpg", quality=95)
        flags = [f"--box={','.join(map(str, box))}" for box in boxes(count)]
        runs = [_run(folder, [*flags], number) for number in range(min(options.repeats, 3))]
    wall, processor, peak = (sorted(column) for column in zip(*runs, strict=True))
    notes = {"processor s": processor[len(runs) // 2], "peak MB": peak[-1]}
    yield Row(case, "sam2_fast", statistics.median(wall), wall[0], wall[-1], notes)


_MEASURED = """
import json, os, subprocess, sys, time

start = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
wall = (time.perf_counter() - start) * 1e3
print(json.dumps([status, wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024]))
"""
"""A small process between this one and the command: the peak of a process includes its parent's."""


def _run(folder: str, flags: list[str], number: int) -> tuple[float, float, float]:
    """(wall clock in ms, processor time in s, peak of resident memory in MB) of one run."""
    options = ["--weights", "nano", "--device", "cpu", "--format", "coco-rle"]
    output = ["--output", f"{folder}/out{number}"]
    command = [sys.executable, "-m", "sam2_fast.cli", "track", folder, *flags, *options, *output]
    measured = [sys.executable, "-c", _MEASURED, *command]
    status, wall, processor, peak = json.loads(subprocess.check_output(measured))
    require(status == 0, "track", f"status {status}")
    return wall, processor, peak
