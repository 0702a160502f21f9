"""What `nano` is held to: 50 synthetic clips whose seeds no training run can draw (those lie below 2 ** 31).

python -m experiments.held_out [--weights FILE] [--clips N] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from sam2_fast import SAM2ImagePredictor, build_sam2, build_sam2_video_predictor
from sam2_fast.data import SyntheticVideo, World
from sam2_fast.evaluation import image_clicks, offline, semi_supervised
from sam2_fast.model import Sam2

FIRST_SEED, CLIPS, LENGTH = 2**31, 50, 32
WORLD = World()
LEAST = 5e-4
"""Share of the first frame that an object covers at least, to be judged."""
BARS = {"one click": 0.80, "memory": 0.15, "three frames": 0.88, "image": 0.75}


def clip(number: int, length: int = LENGTH, world: World = WORLD) -> SyntheticVideo:
    """Held-out clip `number`."""
    return SyntheticVideo(FIRST_SEED + number, length, world)


def truth(video: SyntheticVideo) -> list[dict[int, np.ndarray]]:
    """Masks of each frame, of the objects that the first one shows."""
    first = video[0].labels
    judged = [i for i in video.ids() if (first == i).mean() >= LEAST]
    return [{i: frame.labels == i for i in judged} for frame in video]


@contextmanager
def remembering(model: Sam2, maps: int | None = None, pointers: bool = True, prompted: bool = True) -> Iterator[None]:
    """Within, `model` attends to at most `maps` recent frames (None: all that it was trained with), with or without object pointers and the
    maps of prompted frames. With nothing left to attend to, a frame is decoded as the first of a video is.
    """
    attend, row = model.attend, model.config.num_maps - 1

    def limited(low: Any, all_maps: Any, rows: Any, all_pointers: Any, ages: Any, longest: int) -> Any:
        if maps == 0 and not pointers and not prompted:
            return model.without_memory(low).expand(len(all_maps), -1, -1, -1)
        keep = [[prompted if r == row else maps is None or r < maps for r in mine] for mine in rows]
        chosen = [[m for m, k in zip(mine, kept, strict=True) if k] for mine, kept in zip(all_maps, keep, strict=True)]
        lines = [[r for r, k in zip(mine, kept, strict=True) if k] for mine, kept in zip(rows, keep, strict=True)]
        if not pointers:
            all_pointers, ages = [p[:0] for p in all_pointers], [[] for _ in ages]
        return attend(low, chosen, lines, all_pointers, ages, longest)

    model.attend = limited  # type: ignore[method-assign]
    try:
        yield
    finally:
        del model.attend


def _video_predictor(weights: str | None) -> Any:
    return build_sam2_video_predictor("nano", weights, device="cpu")


def one_click(number: int, weights: str | None, memory: bool = True) -> list[float]:
    """J&F of each object, clicked once on the first frame."""
    predictor, video = _video_predictor(weights), clip(number)
    with remembering(predictor, *(() if memory else (0, False, False))):
        return [(row.j + row.f) / 2 for row in semi_supervised(predictor, video.images(), truth(video), "click")]


def three_frames(number: int, weights: str | None) -> list[float]:
    """J&F of each object after three clicks on up to three frames, offline."""
    predictor, video = _video_predictor(weights), clip(number)
    masks = truth(video)
    return [offline(predictor, video.images(), [m[i] for m in masks], prompted_frames=3)[-1].j_and_f for i in masks[0]]


def one_click_image(number: int, weights: str | None) -> list[float]:
    """IoU of each object of the first frame, clicked once."""
    predictor, video = SAM2ImagePredictor(build_sam2("nano", weights, device="cpu")), clip(number)
    return [float(iou) for iou in image_clicks(predictor, video[0].image, list(truth(video)[0].values()), clicks=(1,))[:, 0]]


def over_clips(task: Callable[..., list[float]], clips: int, processes: int, **options: Any) -> list[float]:
    """The values of all objects of the held-out clips."""
    with ProcessPoolExecutor(processes, get_context("spawn"), _one_thread) as pool:
        found = tqdm(pool.map(partial(task, **options), range(clips)), total=clips, desc=task.__name__)
        return [value for values in found for value in values]


def _one_thread() -> None:
    torch.set_num_threads(1)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", help="default: those of the package")
    parser.add_argument("--clips", type=int, default=CLIPS)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=["image", "one click", "no memory", "three frames"])
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    tasks: dict[str, Callable[..., list[float]]] = {
        "image": one_click_image, "one click": one_click, "no memory": partial(one_click, memory=False), "three frames": three_frames,
    }  # fmt: skip
    for task in tasks.values():
        if isinstance(task, partial):
            task.__name__ = "no_memory"  # type: ignore[attr-defined]
    found = {name: over_clips(tasks[name], given.clips, given.processes, weights=given.weights) for name in given.only}
    means = {name: float(np.mean(values)) for name, values in found.items()}
    print(f"held-out clips: seeds {FIRST_SEED} to {FIRST_SEED + given.clips - 1}, {LENGTH} frames of {WORLD.height} x {WORLD.width}")
    for name, mean in means.items():
        print(f"{name:14s} {mean:.3f}  ({len(found[name])} objects)")
    if given.json:
        given.json.write_text(json.dumps({"seeds": [FIRST_SEED, FIRST_SEED + given.clips - 1], "means": means, "objects": found}, indent=1))


if __name__ == "__main__":
    main()
