"""Scores of a folder of predictions, by the rules of the SA-V evaluator."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import torch

from sam2_fast.data.folders import Annotations, PathLike, videos_in
from sam2_fast.evaluation.metrics import BOUND
from sam2_fast.evaluation.scores import ObjectScore, Report, Unjudged, VideoScores
from sam2_fast.io.progress import Bar


class VideoResult(NamedTuple):
    """The scores of one video, and what of it was not judged."""

    scores: list[ObjectScore]
    unjudged: list[Unjudged]


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
    return _score(truth, masks, video, ends=ends, bound=bound, device=device).scores


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
    finished: Callable[[Report], object] | None = None,
) -> Report:
    """Scores of all videos that both folders have, or of `videos`.

    `unjudged` of the report names videos of only one folder, and videos, frames and objects of
    which no score counts. strict: raise ValueError if there are any.
    processes: number of videos that are scored in parallel, each on one thread.
    finished: called after each video with the scores of all videos so far, for example to save them
        if a later one fails.
    Source: the rules of the SA-V evaluator.
    """
    names, unjudged = (list(videos), []) if videos is not None else _common(truth, masks, strict)
    score = partial(_score, truth, masks, ends=ends, bound=bound, device=device)
    rows: list[ObjectScore] = []
    for result in Bar(
        _mapped(score, names, processes), total=len(names), desc="evaluate", disable=not progress
    ):
        rows += result.scores
        unjudged += result.unjudged
        if finished is not None:
            finished(Report([*rows], [*unjudged]))
    refuse_unjudged(unjudged, strict, f"masks {masks}")
    return Report(rows, unjudged)


def refuse_unjudged(unjudged: Sequence[Unjudged], strict: bool, label: str) -> None:
    """Raise ValueError if `strict` and something was not judged; label: the start of the error."""
    if strict and unjudged:
        more = f"; and {len(unjudged) - 5} more" if len(unjudged) > 5 else ""
        raise ValueError(
            f"{label}: not judged, but strict: {'; '.join(map(str, unjudged[:5]))}{more}"
        )


def _score(
    truth: PathLike, masks: PathLike, video: str, *, ends: bool, bound: float, device: str
) -> VideoResult:
    annotations, predictions = Annotations(Path(truth) / video), Annotations(Path(masks) / video)
    if (
        annotations.one_file_an_object
        and predictions.one_file_an_object
        and (missing := _numbers(annotations) - _numbers(predictions))
    ):
        raise FileNotFoundError(
            f"annotations {predictions.folder / f'{min(missing):03d}'}: no such folder, but its "
            f"object has annotations"
        )
    names = annotations.frames()
    frames = names if ends else names[1:-1]
    if not frames:
        raise ValueError(
            f"annotations {annotations.folder}: expected 3 frames or more, got "
            f"{len(names)}; the first and last are not scored"
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
    rows = scores.result(video)
    reasons = _reasons(annotations, predictions, frames, {row.object for row in rows})
    if extra := scores.extra():
        reasons.append(f"{_listed('object', extra)} of the predictions: not in the truth")
    return VideoResult(rows, [Unjudged(video, reason) for reason in reasons])


def _reasons(
    annotations: Annotations, predictions: Annotations, judged: list[str], objects: set[int]
) -> list[str]:
    """Why parts of a video are not judged: frames and objects that the judged frames lack."""
    names = annotations.frames()
    numbers = _numbers(annotations)
    for frame in names:
        if frame not in judged:
            numbers |= {i for i, mask in annotations.read(frame).items() if mask.any()}
    reasons = []
    if not objects:
        reasons.append("no object is visible in the truth of the judged frames")
    elif missing := sorted(numbers - objects):
        listed = _listed("object", missing)
        reasons.append(f"{listed} of the truth: not visible on the judged frames")
    known = set(names)
    if unknown := [frame for frame in predictions.frames() if frame not in known]:
        reasons.append(f"{_listed('frame', unknown)} of the predictions: not in the truth")
    return reasons


def _numbers(annotations: Annotations) -> set[int]:
    return {int(name) for name in annotations.objects()}


def _listed(noun: str, items: Sequence[object]) -> str:
    """For example "2 objects (3, 7)"; at most five items are listed."""
    plural = noun if len(items) == 1 else f"{noun}s"
    more = ", ..." if len(items) > 5 else ""
    return f"{len(items)} {plural} ({', '.join(map(str, items[:5]))}{more})"


def _common(truth: PathLike, masks: PathLike, strict: bool) -> tuple[list[str], list[Unjudged]]:
    """The videos of both folders, and those of only one."""
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
    unjudged = [Unjudged(video, "only in the truth") for video in sorted(annotated - predicted)]
    unjudged += [
        Unjudged(video, "only in the predictions") for video in sorted(predicted - annotated)
    ]
    return sorted(annotated & predicted), unjudged


def _mapped(
    score: partial[VideoResult], names: Sequence[str], processes: int
) -> Iterator[VideoResult]:
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
