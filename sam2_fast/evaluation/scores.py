"""Scores of a video's objects, frame by frame, and of many videos together."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sam2_fast.atomic import whole_file
from sam2_fast.evaluation.metrics import BOUND, boundary_accuracy, region_similarity

Mask = npt.NDArray[np.bool_]
RECALL = 0.5  # a frame is found where it scores more


class VideoScores:
    """J and F of the objects of one video, by the rules of the SA-V evaluator.

    An object counts from the first frame on which it is seen, in the truth or in the prediction;
    objects that the truth never shows are left out at the end.
    """

    def __init__(self, *, device: torch.device | str = "cpu", bound: float = BOUND) -> None:
        self._device, self._bound = torch.device(device), bound
        self._scores: dict[int, list[tuple[float, float]]] = {}
        self._true: set[int] = set()

    def add(self, truth: Mapping[int, Mask], masks: Mapping[int, Mask]) -> None:
        """The next frame: masks [H, W] bool by object; an object without a mask is absent. Raises
        ValueError for masks of other sizes.
        """
        sizes = {mask.shape for mask in (*truth.values(), *masks.values())}
        if len(sizes) > 1:
            raise ValueError(
                f"masks: expected one size in a frame, got "
                f"{', '.join(str(size) for size in sorted(sizes))}"
            )
        self._true |= {i for i, mask in truth.items() if mask.any()}
        for i in self._true | {i for i, mask in masks.items() if mask.any()}:
            self._scores.setdefault(i, [])
        if not self._scores:
            return
        nothing = np.zeros(sizes.pop(), dtype=bool) if sizes else np.zeros((1, 1), dtype=bool)
        wanted, found = (
            torch.from_numpy(np.stack([frame.get(i, nothing) for i in self._scores])).to(
                self._device
            )
            for frame in (truth, masks)
        )
        similarity = region_similarity(found, wanted).tolist()
        accuracy = boundary_accuracy(found, wanted, self._bound).tolist()
        for history, j, f in zip(self._scores.values(), similarity, accuracy, strict=True):
            history.append((j, f))

    def result(self, video: str) -> list[ObjectScore]:
        """One row an object that the truth showed, in the order of ids."""
        return [ObjectScore.of(video, i, self._scores[i]) for i in sorted(self._true)]


@dataclass(frozen=True)
class ObjectScore:
    """One object of one video. Shares from 0 to 1: mean, recall (frames above 0.5) and decay (first
    quarter less last) of J and F.
    """

    video: str
    object: int
    frames: int
    j: float
    f: float
    j_recall: float
    f_recall: float
    j_decay: float
    f_decay: float

    @property
    def j_and_f(self) -> float:
        """The mean of both."""
        return (self.j + self.f) / 2

    @classmethod
    def of(cls, video: str, number: int, frames: Sequence[tuple[float, float]]) -> ObjectScore:
        """From J and F of its frames in order."""
        means, recalls, decays = zip(
            *(statistics_of([frame[i] for frame in frames]) for i in range(2)), strict=True
        )
        return cls(video, number, len(frames), *means, *recalls, *decays)


def statistics_of(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean, recall and decay. Source: DAVIS' `db_statistics`: four bins of frames whose edges are
    rounded evenly spaced places.
    """
    array = np.asarray(values, dtype=np.float64)
    edges = np.round(np.linspace(1, len(array), 5) + 1e-10).astype(np.int64) - 1
    bins = [array[edges[i] : edges[i + 1] + 1] for i in range(4)]
    return (
        float(array.mean()),
        float((array > RECALL).mean()),
        float(bins[0].mean() - bins[3].mean()),
    )


@dataclass(frozen=True)
class Report:
    """Objects of all videos; the means are over objects, as the benchmarks have it, not over
    videos.
    """

    objects: list[ObjectScore]

    def mean(self, name: str) -> float:
        """The mean of a column of `ObjectScore`, 0 to 1; NaN without objects."""
        return (
            float(np.mean([getattr(row, name) for row in self.objects]))
            if self.objects
            else float("nan")
        )

    def by_video(self) -> dict[str, Report]:
        """A report of each video."""
        return self.grouped(lambda row: row.video)

    def grouped(self, key: Any) -> dict[Any, Report]:
        """Reports by `key`, a function of an `ObjectScore` or a mapping from (video, object):
        sizes, categories, who is shown.
        """
        found: dict[Hashable, list[ObjectScore]] = {}
        for row in self.objects:
            try:
                name = key[row.video, row.object] if isinstance(key, Mapping) else key(row)
            except KeyError as error:
                raise ValueError(
                    f"key: expected an entry for object {row.object} of video {row.video}, got none"
                ) from error
            found.setdefault(name, []).append(row)
        return {name: Report(rows) for name, rows in found.items()}

    def summary(self) -> dict[str, float]:
        """Means in percent."""
        names = ("j_and_f", "j", "f", "j_recall", "f_recall", "j_decay", "f_decay")
        return {"objects": len(self.objects), **{name: 100 * self.mean(name) for name in names}}

    def save(self, path: str | os.PathLike[str]) -> None:
        """One row an object in percent: `.csv` or `.json`. The file is whole or not there."""
        rows = [_percent(asdict(row) | {"j_and_f": row.j_and_f}) for row in self.objects]
        suffix = Path(path).suffix.lower()
        if suffix not in (".csv", ".json"):
            raise ValueError(f"report: expected a .csv or .json file, got {path}")
        with whole_file(path) as beside, beside.open("w", newline="", encoding="utf-8") as file:
            if suffix == ".json":
                json.dump({"summary": self.summary(), "objects": rows}, file, indent=1)
            else:
                _write_csv(file, rows, self.summary())


def _percent(row: dict[str, Any]) -> dict[str, Any]:
    return {name: 100 * value if isinstance(value, float) else value for name, value in row.items()}


def _write_csv(file: Any, rows: Iterable[dict[str, Any]], summary: dict[str, float]) -> None:
    columns = [
        "video",
        "object",
        "frames",
        "j_and_f",
        "j",
        "f",
        "j_recall",
        "f_recall",
        "j_decay",
        "f_decay",
    ]
    writer = csv.DictWriter(file, columns)
    writer.writeheader()
    writer.writerow(
        {
            "video": "all",
            "object": "",
            "frames": "",
            **{name: value for name, value in summary.items() if name != "objects"},
        }
    )
    writer.writerows(rows)
