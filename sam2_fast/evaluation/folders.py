"""Scores of a folder of predictions, by the rules of the SA-V evaluator."""

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
    """Scores of one video on the annotated frames.

    ends: also score the first and last of these frames, which benchmarks leave out.
    Raises FileNotFoundError if a scored frame has no prediction, and ValueError if the sizes
    differ. Other frames of the prediction are ignored.
    """
    annotations, predictions = Annotations(Path(truth) / video), Annotations(Path(masks) / video)
    if (
        annotations.one_file_an_object
        and predictions.one_file_an_object
        and (missing := annotations.objects() - predictions.objects())
    ):
        raise FileNotFoundError(
            f"annotations {predictions.folder / sorted(missing)[0]}: no such folder, but its "
            f"object has annotations"
        )
    frames = annotations.frames() if ends else annotations.frames()[1:-1]
    if not frames:
        raise ValueError(
            f"annotations {annotations.folder}: expected 3 frames or more, got "
            f"{len(annotations.frames())}; the first and last are not scored"
        )
    scores = VideoScores(device=device, bound=bound)
    for frame in frames:
        void = annotations.void(frame)
        true_masks = annotations.read(frame)
        predicted = predictions.read(frame)
        try:
            if void is not None:
                predicted = {i: mask & ~void for i, mask in predicted.items()}
            scores.add(true_masks, predicted)
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
    """Scores of all videos that both folders have, or of `videos`.

    strict: raise ValueError for a video that only one of the folders has.
    processes: number of videos that are scored in parallel, each on one thread.
    Source: the rules of the SA-V evaluator.
    """
    names = list(videos) if videos is not None else _common(truth, masks, strict)
    score = partial(_score_alone, truth, masks, ends=ends, bound=bound, device=device)
    rows: list[ObjectScore] = []
    for scores in tqdm(
        _mapped(score, names, processes), total=len(names), desc="evaluate", disable=not progress
    ):
        rows += scores
    return Report(rows)


def _common(truth: PathLike, masks: PathLike, strict: bool) -> list[str]:
    annotated, predicted = set(videos_in(truth)), set(videos_in(masks))
    if strict and annotated != predicted:
        raise ValueError(
            f"masks {masks}: videos without truth: {sorted(predicted - annotated)}; videos without "
            f"masks: {sorted(annotated - predicted)}"
        )
    if not annotated & predicted:
        raise ValueError(
            f"masks {masks}: expected videos of {truth}, e.g. {sorted(annotated)[:3]}, got "
            f"{sorted(predicted)[:3]}"
        )
    return sorted(annotated & predicted)


def _score_alone(
    truth: PathLike, masks: PathLike, video: str, *, ends: bool, bound: float, device: str
) -> list[ObjectScore]:
    return score_video(truth, masks, video, ends=ends, bound=bound, device=device)


def _mapped(
    score: partial[list[ObjectScore]], names: Sequence[str], processes: int
) -> Iterator[list[ObjectScore]]:
    if processes < 1:
        raise ValueError(f"processes: expected 1 or more, got {processes}")
    if processes == 1:
        yield from map(score, names)
        return
    # One thread in each worker process. The threads of this process stay as they are.
    with ProcessPoolExecutor(
        processes, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        yield from pool.map(score, names)
