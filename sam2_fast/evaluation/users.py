"""Simulated users on benchmark folders: interactive protocols and semi-supervised tracking.

Several videos can be processed in parallel.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from sam2_fast.data.folders import Annotations, PathLike, videos_in
from sam2_fast.data.listing import files_by_stem, same_number
from sam2_fast.evaluation.folders import refuse_unjudged
from sam2_fast.evaluation.interactive import (
    Interaction,
    offline,
    offline_seconds,
    online,
    online_seconds,
)
from sam2_fast.evaluation.metrics import BOUND
from sam2_fast.evaluation.scores import Mask, Unjudged
from sam2_fast.evaluation.semi_supervised import Prompt, semi_supervised
from sam2_fast.files.atomic import whole_file
from sam2_fast.io.frames import FrameSource
from sam2_fast.io.json_files import to_json
from sam2_fast.io.progress import Bar
from sam2_fast.io.video import open_video

Protocol = Literal["offline", "online", "semi-supervised"]


@dataclass(frozen=True)
class User:
    """The protocol of a simulated user, and its settings."""

    protocol: Protocol = "offline"
    prompt: Prompt = "mask"  # for semi-supervised tracking
    prompted_frames: int = 8  # for the interactive protocols: greatest number per object
    clicks_per_frame: int = 3
    bound: float = BOUND

    def __post_init__(self) -> None:
        if self.protocol not in ("offline", "online", "semi-supervised"):
            raise ValueError(
                f"protocol: expected offline, online or semi-supervised, got {self.protocol!r}"
            )
        if self.prompted_frames < 1 or self.clicks_per_frame < 1:
            raise ValueError("prompted_frames, clicks_per_frame: expected 1 or more each")


@dataclass(frozen=True)
class Round:
    """Scores of one object after its user prompted a number of frames; J and F are 0 to 1."""

    video: str
    object: int
    prompted_frames: int
    clicks: int
    seconds: float  # time of the user by the paper's model; 0 for semi-supervised tracking
    j: float
    f: float

    @property
    def j_and_f(self) -> float:
        """The mean of J and F."""
        return (self.j + self.f) / 2


@dataclass(frozen=True)
class Rounds:
    """The rounds of all videos. Means are over objects.

    unjudged: what the folders have and no round counts.
    """

    rounds: list[Round]
    unjudged: list[Unjudged] = field(default_factory=list)

    def curve(self) -> dict[int, float]:
        """Mean J&F by number of prompted frames."""
        counts = sorted({row.prompted_frames for row in self.rounds})
        return {
            count: float(
                np.mean([row.j_and_f for row in self.rounds if row.prompted_frames == count])
            )
            for count in counts
        }

    def mean(self) -> float:
        """The number that the paper reports: the mean of the curve; NaN without rounds."""
        return float(np.mean(list(self.curve().values()))) if self.rounds else float("nan")

    def save(self, path: PathLike, complete: bool = True) -> None:
        """Write one row per object and round, in percent, to a `.csv` or `.json` file.

        JSON also lists what was not judged; its mean is null without rounds. The file is whole or
        absent. complete: False says in JSON that videos are missing.
        """
        rows = [
            asdict(row) | {"j": 100 * row.j, "f": 100 * row.f, "j_and_f": 100 * row.j_and_f}
            for row in self.rounds
        ]
        suffix = Path(path).suffix.lower()
        if suffix not in (".csv", ".json"):
            raise ValueError(f"rounds: expected a .csv or .json file, got {path}")
        with whole_file(path) as beside, beside.open("w", newline="", encoding="utf-8") as file:
            if suffix == ".json":
                curve = {count: 100 * value for count, value in self.curve().items()}
                document = {
                    "complete": complete,
                    "mean": 100 * self.mean(),
                    "curve": curve,
                    "rounds": rows,
                    "unjudged": [asdict(item) for item in self.unjudged],
                }
                file.write(to_json(document, indent=1))
            else:
                columns = ["video", "object", "prompted_frames", "clicks", "seconds"]
                writer = csv.DictWriter(file, [*columns, "j_and_f", "j", "f"])
                writer.writeheader()
                writer.writerows(rows)


def simulate_users(
    build: Callable[[], Any],
    images: PathLike,
    annotations: PathLike,
    user: User,
    *,
    videos: Sequence[str] | None = None,
    processes: int = 1,
    strict: bool = False,
    progress: bool = True,
    finished: Callable[[Rounds], object] | None = None,
) -> Rounds:
    """Let a separate user prompt every object of every video in `annotations`, or in `videos`.

    build: creates the predictor, once per process; must be picklable for several processes.
    images: folders `<video>` of frames, or video files `<video>.mp4`.
    annotations: a folder of videos for `Annotations`. The interactive protocols need masks of every
        frame.
    `unjudged` of the result names videos without annotations, and videos and objects of which no
    round counts. strict: raise ValueError if there are any.
    finished: called after each video with the rounds of all videos so far, for example to save them
        if a later one fails.
    """
    names = list(videos) if videos is not None else videos_in(annotations)
    if not names:
        raise ValueError(f"annotations {annotations}: expected a folder for each video, got none")
    tasks = [(str(images), str(annotations), name, user) for name in names]
    unjudged = []
    if videos is None:
        unjudged = [
            Unjudged(name, "has no annotations")
            for name in _video_names(Path(images))
            if name not in names
        ]
    refuse_unjudged(unjudged, strict, f"annotations {annotations}")
    rounds: list[Round] = []
    for result in Bar(
        _mapped(build, tasks, processes), total=len(tasks), desc=user.protocol, disable=not progress
    ):
        rounds += result.rounds
        unjudged += result.unjudged
        if finished is not None:
            finished(Rounds([*rounds], [*unjudged]))
    refuse_unjudged(unjudged, strict, f"annotations {annotations}")
    return Rounds(rounds, unjudged)


def simulate_video(
    predictor: Any, images: PathLike, annotations: PathLike, name: str, user: User
) -> list[Round]:
    """The rounds of all objects of one video."""
    return _simulate(predictor, images, annotations, name, user).rounds


def _simulate(
    predictor: Any, images: PathLike, annotations: PathLike, name: str, user: User
) -> Rounds:
    """The rounds of one video, and what of it was not judged."""
    with _open(Path(images), name) as video:
        truth = _truth(Annotations(Path(annotations) / name), video, Path(images) / name)
        rounds = _rounds(predictor, video, truth, Path(annotations) / name, user)
    visible = {i for masks in truth for i, mask in (masks or {}).items() if mask.any()}
    missing = sorted(visible - {row.object for row in rounds})
    if not rounds:
        return Rounds(rounds, [Unjudged(name, "no object is visible on the judged frames")])
    listed = ", ".join(map(str, missing))
    reason = f"objects of the truth that are not visible on the judged frames: {listed}"
    return Rounds(rounds, [Unjudged(name, reason)] if missing else [])


def _rounds(
    predictor: Any,
    video: FrameSource,
    truth: list[dict[int, Mask] | None],
    annotations: Path,
    user: User,
) -> list[Round]:
    name = annotations.name
    if user.protocol == "semi-supervised":
        rows = semi_supervised(predictor, video, truth, user.prompt, name=name, bound=user.bound)
        return [Round(name, row.object, 1, 0, 0.0, row.j, row.f) for row in rows]
    dense = [masks for masks in truth if masks is not None]
    if len(dense) < len(truth):
        raise ValueError(
            f"annotations {annotations}: expected masks of all {len(truth)} frames for "
            f"{user.protocol}, got {len(dense)}"
        )
    rounds: list[Round] = []
    empty = np.zeros((video.height, video.width), dtype=bool)
    for number in sorted({i for masks in dense for i, mask in masks.items() if mask.any()}):
        masks_of_object = [masks.get(number, empty) for masks in dense]
        rounds += _interact(predictor, video, masks_of_object, name, number, user)
    return rounds


def _interact(
    predictor: Any, video: FrameSource, truth: list[Mask], name: str, number: int, user: User
) -> list[Round]:
    protocol, seconds = (
        (offline, offline_seconds) if user.protocol == "offline" else (online, online_seconds)
    )
    rounds: list[Interaction] = protocol(
        predictor,
        video,
        truth,
        clicks_per_frame=user.clicks_per_frame,
        prompted_frames=user.prompted_frames,
        bound=user.bound,
    )
    return [
        Round(
            name,
            number,
            k,
            r.clicks,
            seconds(len(truth), len(r.prompted), r.clicks / max(len(r.prompted), 1)),
            r.j,
            r.f,
        )
        for k, r in enumerate(rounds, start=1)
    ]


def _open(images: Path, name: str) -> FrameSource:
    if (images / name).is_dir():
        return open_video(images / name)
    files = _video_files(images)
    if name not in files:
        raise FileNotFoundError(f"images {images / name}: no such folder, and no {name}.mp4")
    return open_video(files[name])


def _video_files(images: Path) -> dict[str, Path]:
    return files_by_stem(images, (".mp4",), "images") if images.is_dir() else {}


def _video_names(images: Path) -> list[str]:
    return sorted({*_video_files(images), *(videos_in(images) if images.is_dir() else [])})


def _truth(
    annotations: Annotations, video: FrameSource, images: Path
) -> list[dict[int, Mask] | None]:
    """Masks for each frame of the video, or None for a frame without annotation."""
    names = [video.frame_name(t) for t in range(len(video))]
    index_of = {name: t for t, name in enumerate(names)}
    truth: list[dict[int, Mask] | None] = [None] * len(names)
    for frame in annotations.frames():
        if frame not in index_of:
            same = same_number(frame, names)
            hint = f"; it has {same[0]}: names must be equal, rename the files" if same else ""
            raise FileNotFoundError(
                f"images {images / frame}: no such frame, but {annotations.folder} has its masks"
                f"{hint}"
            )
        truth[index_of[frame]] = annotations.read(frame)
    return truth


_predictor: Any = None  # the predictor of a worker process


def _start_worker(build: Callable[[], Any], set_threads: Callable[[int], None]) -> None:
    """Initialise a worker process: one thread, and its own predictor."""
    global _predictor
    set_threads(1)
    _predictor = build()


def _simulate_in_worker(task: tuple[str, str, str, User]) -> Rounds:
    return _simulate(_predictor, *task)


def _mapped(
    build: Callable[[], Any], tasks: Sequence[tuple[str, str, str, User]], processes: int
) -> Iterator[Rounds]:
    if processes < 1:
        raise ValueError(f"processes: expected 1 or more, got {processes}")
    if processes == 1:
        predictor = build()
        yield from (_simulate(predictor, *task) for task in tasks)
        return
    with ProcessPoolExecutor(
        processes,
        mp_context=get_context("spawn"),
        initializer=_start_worker,
        initargs=(build, torch.set_num_threads),
    ) as pool:
        yield from pool.map(_simulate_in_worker, tasks)
