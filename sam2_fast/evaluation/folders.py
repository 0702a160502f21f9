"""Annotation folders as benchmarks publish them, and the scores of a folder of predictions.

A video is a folder either of palette images, `<video>/<frame>.png` whose pixels are object ids (DAVIS, MOSE, YouTube-VOS, LVOS), or of
a folder an object, `<video>/<object>/<frame>.png` whose pixels that are not zero are the object (SA-V). Each video decides for itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from sam2_fast.evaluation.metrics import BOUND
from sam2_fast.evaluation.scores import Mask, ObjectScore, Report, VideoScores
from sam2_fast.io.images import open_image

PathLike = str | os.PathLike[str]
VOID = 255
"""The id of pixels that DAVIS leaves unjudged."""


class Annotations:
    """The masks of one video on disk. Frames are names without suffix, in order."""

    def __init__(self, folder: PathLike) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise FileNotFoundError(f"annotations {folder}: no such folder")
        entries = sorted(entry for entry in self.folder.iterdir() if not entry.name.startswith("."))
        if not entries:
            raise ValueError(f"annotations {folder}: expected PNG files, or a folder for each object, got an empty folder")
        self.one_file_an_object = not all(entry.suffix.lower() == ".png" for entry in entries)
        self._folders = {entry.name: entry for entry in entries if entry.is_dir()} if self.one_file_an_object else {}
        if self.one_file_an_object and not self._folders:
            raise ValueError(f"annotations {folder}: expected PNG files, or a folder for each object, got {entries[0].name}")

    def objects(self) -> set[str]:
        """Names of the objects' folders, where they have some."""
        return set(self._folders)

    def frames(self) -> list[str]:
        """Every frame that has a file."""
        folders = self._folders.values() if self.one_file_an_object else [self.folder]
        return sorted({path.stem for folder in folders for path in folder.glob("*.png") if not path.name.startswith(".")})

    def read(self, frame: str) -> dict[int, Mask]:
        """The masks [H, W] of a frame's objects. Raises FileNotFoundError, naming the file, where the frame has none."""
        if not self.one_file_an_object:
            labels = _labels(self.folder / f"{frame}.png")
            return {int(i): labels == i for i in np.unique(labels) if i not in (0, VOID)}
        found = {_number(folder): folder / f"{frame}.png" for folder in self._folders.values()}
        missing = [path for path in found.values() if not path.is_file()]
        if missing:
            raise FileNotFoundError(f"annotations {missing[0]}: no such file, and frame {frame} is to be judged")
        return {i: _labels(path) != 0 for i, path in found.items()}

    def void(self, frame: str) -> Mask | None:
        """Pixels that are not judged, or None."""
        if self.one_file_an_object:
            return None
        unjudged = _labels(self.folder / f"{frame}.png") == VOID
        return unjudged if unjudged.any() else None


def videos_in(root: PathLike) -> list[str]:
    """Names of the videos below `root`, in order; "Annotations" folders of the published layouts are looked through."""
    if not Path(root).is_dir():
        raise FileNotFoundError(f"annotations {root}: no such folder")
    return sorted(path.name for path in Path(root).iterdir() if path.is_dir() and not path.name.startswith("."))


def score_video(
    truth: PathLike, masks: PathLike, video: str, *, ends: bool = False, bound: float = BOUND, device: str = "cpu"
) -> list[ObjectScore]:
    """Scores of one video on the frames that the truth has; ends: the first and last of them too, which benchmarks leave out.

    Every judged frame must be among the predictions (FileNotFoundError), of the truth's size (ValueError); others are ignored.
    """
    wanted, found = Annotations(Path(truth) / video), Annotations(Path(masks) / video)
    if wanted.one_file_an_object and found.one_file_an_object and (missing := wanted.objects() - found.objects()):
        raise FileNotFoundError(f"annotations {found.folder / sorted(missing)[0]}: no such folder, and its object is to be judged")
    frames = wanted.frames() if ends else wanted.frames()[1:-1]
    if not frames:
        raise ValueError(
            f"annotations {wanted.folder}: expected 3 frames or more, got {len(wanted.frames())}; the first and last are not judged"
        )
    scores = VideoScores(device=device, bound=bound)
    for frame in frames:
        unjudged, mine, theirs = wanted.void(frame), wanted.read(frame), found.read(frame)
        try:
            scores.add(mine, theirs if unjudged is None else {i: mask & ~unjudged for i, mask in theirs.items()})
        except ValueError as error:
            raise ValueError(f"video {video}, frame {frame}: {error}") from error
    return scores.result(video)


def score_folders(
    truth: PathLike,
    masks: PathLike,
    *,
    videos: Sequence[str] | None = None,
    ends: bool = False,
    strict: bool = False,
    bound: float = BOUND,
    device: str = "cpu",
    processes: int = 1,
    progress: bool = True,
) -> Report:
    """Scores of all videos that both folders have (or of `videos`). Source: the SA-V evaluator's rules.

    strict: a video that only one of them has is a ValueError. processes: videos at a time, each on one thread.
    """
    names = list(videos) if videos is not None else _common(truth, masks, strict)
    one = partial(_score_alone, truth, masks, ends=ends, bound=bound, device=device)
    rows: list[ObjectScore] = []
    for found in tqdm(_mapped(one, names, processes), total=len(names), desc="evaluate", disable=not progress):
        rows += found
    return Report(rows)


def _common(truth: PathLike, masks: PathLike, strict: bool) -> list[str]:
    wanted, found = set(videos_in(truth)), set(videos_in(masks))
    if strict and wanted != found:
        raise ValueError(f"masks {masks}: videos without truth: {sorted(found - wanted)}; videos without masks: {sorted(wanted - found)}")
    if not wanted & found:
        raise ValueError(f"masks {masks}: expected videos of {truth}, e.g. {sorted(wanted)[:3]}, got {sorted(found)[:3]}")
    return sorted(wanted & found)


def _score_alone(truth: PathLike, masks: PathLike, video: str, *, ends: bool, bound: float, device: str) -> list[ObjectScore]:
    return score_video(truth, masks, video, ends=ends, bound=bound, device=device)


def _mapped(one: partial[list[ObjectScore]], names: Sequence[str], processes: int) -> Iterator[list[ObjectScore]]:
    if processes < 1:
        raise ValueError(f"processes: expected 1 or more, got {processes}")
    if processes == 1:
        yield from map(one, names)
        return
    # one thread in each of our own processes; the caller's threads stay as they are
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield from pool.map(one, names)


def _number(folder: Path) -> int:
    if not folder.name.isdigit():
        raise ValueError(f"annotations {folder}: expected a folder named by the object's number")
    return int(folder.name)


def _labels(path: Path) -> npt.NDArray[np.uint8]:
    with open_image(path) as image:
        labels = np.asarray(image)
    if labels.ndim != 2:
        raise ValueError(f"annotations {path}: expected a palette or grey image whose pixels are ids, got one with colours")
    return labels
