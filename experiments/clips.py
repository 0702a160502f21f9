"""Held-out clips, predictors with a limited memory, and tasks that run over many clips."""

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

FIRST_SEED = 2**31
CLIPS = 50
LENGTH = 32  # frames
WORLD = World(objects=(2, 4), size=(0.12, 0.3), variety=0.5, look_alikes=0.2, absences=0.1)
MIN_AREA = 5e-4
"""The smallest share of the first frame that an object must cover to be evaluated."""
T = TypeVar("T")
Task = Callable[..., list[float]]


def clip(number: int, length: int = LENGTH, world: World = WORLD) -> SyntheticVideo:
    """Held-out clip `number`."""
    return SyntheticVideo(FIRST_SEED + number, length, world)


def evaluated_objects(video: SyntheticVideo) -> list[int]:
    """The ids of the objects that are visible in the first frame."""
    first = video[0].labels
    return [i for i in video.ids() if (first == i).mean() >= MIN_AREA]


def true_masks(video: SyntheticVideo) -> list[dict[int, npt.NDArray[np.bool_]]]:
    """For each frame the masks of the evaluated objects, by id."""
    objects = evaluated_objects(video)
    return [{i: frame.labels == i for i in objects} for frame in video]


def video_predictor(weights: str | None) -> Any:
    """A video predictor on the CPU, with these weights or those of `nano`."""
    return build_sam2_video_predictor(None, weights or PACKAGED["nano"], device="cpu")


def image_predictor(weights: str | None) -> SAM2ImagePredictor:
    """An image predictor on the CPU, with these weights or those of `nano`."""
    return SAM2ImagePredictor(build_sam2(None, weights or PACKAGED["nano"], device="cpu"))


@contextmanager
def limited_memory(
    model: Sam2, maps: int | None = None, pointers: bool = True, prompted: bool = True
) -> Iterator[None]:
    """A context in which `model` attends to a part of its memory only.

    maps: number of recent frames, or None for as many as in training. pointers: whether it attends
    to object pointers. prompted: whether it attends to the maps of prompted frames.

    Without any memory a frame is decoded like the first frame of a video.
    """
    attend = model.attend
    prompted_row = model.config.num_maps - 1

    def is_used(row: int) -> bool:
        if row == prompted_row:
            return prompted
        return maps is None or row < maps

    def attend_to_part(
        low: Any, all_maps: Any, all_rows: Any, all_pointers: Any, ages: Any, longest: int
    ) -> Any:
        if maps == 0 and not pointers and not prompted:
            return model.without_memory(low).expand(len(all_maps), -1, -1, -1)
        used_maps = [
            [m for m, row in zip(object_maps, rows, strict=True) if is_used(row)]
            for object_maps, rows in zip(all_maps, all_rows, strict=True)
        ]
        used_rows = [[row for row in rows if is_used(row)] for rows in all_rows]
        if not pointers:
            all_pointers = [p[:0] for p in all_pointers]
            ages = [[] for _ in ages]
        return attend(low, used_maps, used_rows, all_pointers, ages, longest)

    model.attend = attend_to_part
    try:
        yield
    finally:
        del model.attend


def over_clips(task: Callable[[int], list[T]], clips: int, processes: int, name: str) -> list[T]:
    """The concatenated results of `task(number)` for each of the held-out clips.

    clips: number of clips. name: for the progress bar.
    """
    with ProcessPoolExecutor(processes, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        return [
            value
            for values in tqdm(pool.map(task, range(clips)), total=clips, desc=name)
            for value in values
        ]
