"""What `nano` is held to: 50 synthetic clips whose seeds no training run can draw (those lie below
2 ** 31).

python -m experiments.held_out [--weights FILE] [--clips N] [--json FILE]
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
    over_clips,
    remembering,
    truth,
    video_predictor,
)
from sam2_fast.evaluation import image_clicks, offline, semi_supervised

BARS = {"image": 0.75, "one click": 0.80, "three frames": 0.88}
"""J&F, of images IoU. Without memory, one click must be worth at least MEMORY less."""
MEMORY = 0.15


def image(number: int, weights: str | None) -> list[float]:
    """IoU of each object of the first frame, clicked once."""
    video = clip(number)
    return [
        float(iou)
        for iou in image_clicks(
            image_predictor(weights), video[0].image, list(truth(video)[0].values()), clicks=(1,)
        )[:, 0]
    ]


def one_click(number: int, weights: str | None, memory: bool = True) -> list[float]:
    """J&F of each object, clicked once on the first frame."""
    predictor, video = video_predictor(weights), clip(number)
    with remembering(predictor, *(() if memory else (0, False, False))):
        return [
            row.j_and_f for row in semi_supervised(predictor, video.images(), truth(video), "click")
        ]


def three_frames(number: int, weights: str | None) -> list[float]:
    """J&F of each object after three clicks on up to three frames, offline."""
    predictor, video = video_predictor(weights), clip(number)
    masks = truth(video)
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
    """Which bars are, of those that were measured."""
    found = {name: means[name] >= bar for name, bar in BARS.items() if name in means}
    if {"one click", "no memory"} <= set(means):
        found["no memory"] = means["one click"] - means["no memory"] >= MEMORY
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Print and perhaps write what was reached."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", help="default: those of the package")
    parser.add_argument("--clips", type=int, default=CLIPS)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    found = {
        name: over_clips(
            partial(TASKS[name], weights=given.weights), given.clips, given.processes, name
        )
        for name in given.only
    }
    means = {name: float(np.mean(values)) for name, values in found.items()}
    seeds = [FIRST_SEED, FIRST_SEED + given.clips - 1]
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
            f"{name:14s} {means[name]:.3f}  ({len(found[name])} objects)  wanted: {bar}: "
            f"{'reached' if good else 'NOT REACHED'}"
        )
    if given.json:
        content: dict[str, Any] = {
            "seeds": seeds,
            "means": means,
            "reached": reached(means),
            "objects": found,
        }
        given.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
