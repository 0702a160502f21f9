"""Scores that `nano` must reach on 50 held-out synthetic clips.

    python -m experiments.held_out [--weights FILE] [--clips N] [--json FILE]

Training draws seeds below 2 ** 31; the seeds of the held-out clips start there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from experiments.clips import (
    CLIPS,
    FIRST_SEED,
    LENGTH,
    WORLD,
    Task,
    clip,
    image_predictor,
    limited_memory,
    over_clips,
    true_masks,
    video_predictor,
)
from sam2_fast.evaluation import image_clicks, offline, semi_supervised

BARS = {"image": 0.75, "one click": 0.80, "three frames": 0.88}
"""The lowest mean to reach: IoU for images, J&F for videos."""
MEMORY = 0.15
"""The J&F of one click must fall by at least this much without memory."""


def image(number: int, weights: str | None) -> list[float]:
    """IoU of each object of the first frame after one click."""
    video = clip(number)
    masks = list(true_masks(video)[0].values())
    ious = image_clicks(image_predictor(weights), video[0].image, masks, clicks=(1,))
    return [float(iou) for iou in ious[:, 0]]


def one_click(number: int, weights: str | None, memory: bool = True) -> list[float]:
    """J&F of each object after one click on the first frame."""
    predictor = video_predictor(weights)
    video = clip(number)
    with limited_memory(predictor, *(() if memory else (0, False, False))):
        rows = semi_supervised(predictor, video.images(), true_masks(video), "click")
    return [row.j_and_f for row in rows]


def three_frames(number: int, weights: str | None) -> list[float]:
    """J&F of each object after three clicks on up to three frames, with offline evaluation."""
    predictor = video_predictor(weights)
    video = clip(number)
    masks = true_masks(video)
    return [
        offline(predictor, video.images(), [m[i] for m in masks], prompted_frames=3)[-1].j_and_f
        for i in masks[0]
    ]


TASKS: dict[str, Task] = {
    "image": image,
    "one click": one_click,
    "no memory": partial(one_click, memory=False),
    "three frames": three_frames,
}


def reached(means: dict[str, float]) -> dict[str, bool]:
    """Name -> whether the measured mean reaches its bar."""
    results = {name: means[name] >= bar for name, bar in BARS.items() if name in means}
    if {"one click", "no memory"} <= set(means):
        results["no memory"] = means["one click"] - means["no memory"] >= MEMORY
    return results


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line: print the scores, and write them to a file with --json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", help="weights file (default: nano, from the package)")
    parser.add_argument("--clips", type=int, default=CLIPS)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    scores = {
        name: over_clips(
            partial(TASKS[name], weights=options.weights), options.clips, options.processes, name
        )
        for name in options.only
    }
    means = {name: float(np.mean(values)) for name, values in scores.items()}
    seeds = [FIRST_SEED, FIRST_SEED + options.clips - 1]
    print(
        f"held-out clips: seeds {seeds[0]} to {seeds[1]}, {LENGTH} frames of {WORLD.height} x "
        f"{WORLD.width}"
    )
    for name, good in reached(means).items():
        bar = (
            f"{BARS[name]:.2f} or more"
            if name in BARS
            else f"{means['one click'] - MEMORY:.3f} or less"
        )
        print(
            f"{name:14s} {means[name]:.3f}  ({len(scores[name])} objects)  expected {bar}: "
            f"{'reached' if good else 'NOT REACHED'}"
        )
    if options.json:
        content: dict[str, Any] = {
            "seeds": seeds,
            "means": means,
            "reached": reached(means),
            "objects": scores,
        }
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
