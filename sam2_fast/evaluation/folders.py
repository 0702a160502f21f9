"""The scores of a folder of predictions, by the rules of the SA-V evaluator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from tqdm import tqdm

from sam2_fast.data.folders import Annotations, PathLike, videos_in
from sam2_fast.evaluation.metrics import BOUND
from sam2_fast.evaluation.scores import ObjectScore, Report, VideoScores


def score_video(
    truth: PathLike,
    masks: PathLike,
    video: str,
    *,
    ends: bool = False,
    bound: float = BOUND,
    device: str = "cpu",
) -> list[ObjectScore]:
    """Scores of one video on the frames that the truth has; ends: the first and last of them too,
    which benchmarks leave out.

    Every judged frame must be among the predictions (FileNotFoundError), of the truth's size
    (ValueError); others are ignored.
    """
    wanted, found = Annotations(Path(truth) / video), Annotations(Path(masks) / video)
    if (
        wanted.one_file_an_object
        and found.one_file_an_object
        and (missing := wanted.objects() - found.objects())
    ):
        raise FileNotFoundError(
            f"annotations {found.folder / sorted(missing)[0]}: no such folder, and its object is "
            f"to be judged"
        )
    frames = wanted.frames() if ends else wanted.frames()[1:-1]
    if not frames:
        raise ValueError(
            f"annotations {wanted.folder}: expected 3 frames or more, got {len(wanted.frames())}; "
            f"the first and last are not judged"
        )
    scores = VideoScores(device=device, bound=bound)
    for frame in frames:
        unjudged, mine, theirs = wanted.void(frame), wanted.read(frame), found.read(frame)
        try:
            scores.add(
                mine,
                theirs if unjudged is None else {i: mask & ~unjudged for i, mask in theirs.items()},
            )
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
    """Scores of all videos that both folders have (or of `videos`). Source: the SA-V evaluator's
    rules.

    strict: a video that only one of them has is a ValueError. processes: videos at a time, each on
        one thread.
    """
    names = list(videos) if videos is not None else _common(truth, masks, strict)
    one = partial(_score_alone, truth, masks, ends=ends, bound=bound, device=device)
    rows: list[ObjectScore] = []
    for found in tqdm(
        _mapped(one, names, processes), total=len(names), desc="evaluate", disable=not progress
    ):
        rows += found
    return Report(rows)


def _common(truth: PathLike, masks: PathLike, strict: bool) -> list[str]:
    wanted, found = set(videos_in(truth)), set(videos_in(masks))
    if strict and wanted != found:
        raise ValueError(
            f"masks {masks}: videos without truth: {sorted(found - wanted)}; videos without "
            f"masks: {sorted(wanted - found)}"
        )
    if not wanted & found:
        raise ValueError(
            f"masks {masks}: expected videos of {truth}, e.g. {sorted(wanted)[:3]}, got "
            f"{sorted(found)[:3]}"
        )
    return sorted(wanted & found)


def _score_alone(
    truth: PathLike, masks: PathLike, video: str, *, ends: bool, bound: float, device: str
) -> list[ObjectScore]:
    return score_video(truth, masks, video, ends=ends, bound=bound, device=device)


def _mapped(
    one: partial[list[ObjectScore]], names: Sequence[str], processes: int
) -> Iterator[list[ObjectScore]]:
    if processes < 1:
        raise ValueError(f"processes: expected 1 or more, got {processes}")
    if processes == 1:
        yield from map(one, names)
        return
    # one thread in each of our own processes; the caller's threads stay as they are
    with ProcessPoolExecutor(
        processes, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        yield from pool.map(one, names)
