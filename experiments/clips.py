"""Held-out clips, predictors with a limited memory, and work over many clips at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from sam2_fast import SAM2ImagePredictor, build_sam2, build_sam2_video_predictor
from sam2_fast.data import SyntheticVideo, World
from sam2_fast.model import Sam2
from sam2_fast.weights.hub import PACKAGED

FIRST_SEED, CLIPS, LENGTH = 2**31, 50, 32
WORLD = World(objects=(2, 4), size=(0.12, 0.3), variety=0.5, look_alikes=0.2, absences=0.1)
LEAST = 5e-4
"""Share of the first frame that an object covers at least, to be judged."""
T = TypeVar("T")
Task = Callable[..., list[float]]


def clip(number: int, length: int = LENGTH, world: World = WORLD) -> SyntheticVideo:
    """Held-out clip `number`."""
    return SyntheticVideo(FIRST_SEED + number, length, world)


def judged(video: SyntheticVideo) -> list[int]:
    """The objects that the first frame shows."""
    first = video[0].labels
    return [i for i in video.ids() if (first == i).mean() >= LEAST]


def truth(video: SyntheticVideo) -> list[dict[int, npt.NDArray[np.bool_]]]:
    """Masks of each frame, of the objects that the first one shows."""
    objects = judged(video)
    return [{i: frame.labels == i for i in objects} for frame in video]


def video_predictor(weights: str | None) -> Any:
    """Of `weights`, or `nano`, on the CPU."""
    return build_sam2_video_predictor(None, weights or PACKAGED["nano"], device="cpu")


def image_predictor(weights: str | None) -> SAM2ImagePredictor:
    """Of `weights`, or `nano`, on the CPU."""
    return SAM2ImagePredictor(build_sam2(None, weights or PACKAGED["nano"], device="cpu"))


@contextmanager
def remembering(
    model: Sam2, maps: int | None = None, pointers: bool = True, prompted: bool = True
) -> Iterator[None]:
    """Within, `model` attends to at most `maps` recent frames (None: all that it was trained with),
    with or without object pointers and the maps of prompted frames. With nothing left to attend to,
    a frame is decoded as the first of a video is.
    """
    attend, row = model.attend, model.config.num_maps - 1

    def limited(
        low: Any, all_maps: Any, rows: Any, all_pointers: Any, ages: Any, longest: int
    ) -> Any:
        if maps == 0 and not pointers and not prompted:
            return model.without_memory(low).expand(len(all_maps), -1, -1, -1)
        keep = [[prompted if r == row else maps is None or r < maps for r in mine] for mine in rows]
        chosen = [
            [m for m, k in zip(mine, kept, strict=True) if k]
            for mine, kept in zip(all_maps, keep, strict=True)
        ]
        lines = [
            [r for r, k in zip(mine, kept, strict=True) if k]
            for mine, kept in zip(rows, keep, strict=True)
        ]
        if not pointers:
            all_pointers, ages = [p[:0] for p in all_pointers], [[] for _ in ages]
        return attend(low, chosen, lines, all_pointers, ages, longest)

    model.attend = limited
    try:
        yield
    finally:
        del model.attend


def over_clips(task: Callable[[int], list[T]], clips: int, processes: int, name: str) -> list[T]:
    """What `task` finds in each of the held-out clips, one list after the other."""
    with ProcessPoolExecutor(processes, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        return [
            value
            for values in tqdm(pool.map(task, range(clips)), total=clips, desc=name)
            for value in values
        ]
