"""Scores of a video's objects, added frame by frame, and reports over many videos."""

from __future__ import annotations

import csv
import os
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sam2_fast.evaluation.metrics import BOUND, boundary_accuracy, region_similarity
from sam2_fast.files.atomic import whole_file
from sam2_fast.io.json_files import finite, to_json
from sam2_fast.ops.core.mask_values import as_bool

Mask = npt.NDArray[np.bool_]
_SCORES = ("j_and_f", "j", "f", "j_recall", "f_recall", "j_decay", "f_decay")
RECALL = 0.5  # a frame counts as recalled if its score is higher


class VideoScores:
    """J and F of the objects of one video, by the rules of the SA-V evaluator.

    An object counts from the first frame on which it is visible, in the truth or in the prediction.
    Objects that are never visible in the truth are left out of the result; see `extra`.
    """

    def __init__(self, *, device: torch.device | str = "cpu", bound: float = BOUND) -> None:
        self._device = torch.device(device)
        self._bound = bound
        self._scores: dict[int, list[tuple[float, float]]] = {}
        self._true: set[int] = set()

    def add(self, truth: Mapping[int, Mask], masks: Mapping[int, Mask]) -> None:
        """Add the next frame.

        truth, masks: [H, W] by object, bool, integers or floats 0 and 1; an object without a mask
            is absent.
        Raises ValueError if the masks differ in size, or for other floats, such as logits.
        """
        truth = {i: as_bool(mask, f"truth, object {i}") for i, mask in truth.items()}
        masks = {i: as_bool(mask, f"masks, object {i}") for i, mask in masks.items()}
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
        empty = np.zeros(sizes.pop(), dtype=bool) if sizes else np.zeros((1, 1), dtype=bool)
        true_masks, predicted = (
            torch.from_numpy(np.stack([frame.get(i, empty) for i in self._scores])).to(self._device)
            for frame in (truth, masks)
        )
        similarity = region_similarity(predicted, true_masks).tolist()
        accuracy = boundary_accuracy(predicted, true_masks, self._bound).tolist()
        for history, j, f in zip(self._scores.values(), similarity, accuracy, strict=True):
            history.append((j, f))

    def result(self, video: str) -> list[ObjectScore]:
        """One row for each object of the truth, ordered by id."""
        return [ObjectScore.of(video, i, self._scores[i]) for i in sorted(self._true)]

    def extra(self) -> list[int]:
        """Objects that are visible in the prediction and never in the truth, ordered by id."""
        return sorted(set(self._scores) - self._true)


@dataclass(frozen=True)
class ObjectScore:
    """Scores of one object of one video, as fractions from 0 to 1.

    j, f: means. recall: fraction of frames above 0.5. decay: mean of the first quarter minus mean
        of the last quarter.
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
        """The mean of J and F."""
        return (self.j + self.f) / 2

    @classmethod
    def of(cls, video: str, number: int, frames: Sequence[tuple[float, float]]) -> ObjectScore:
        """The scores from J and F of an object's frames in order."""
        means, recalls, decays = zip(
            *(statistics_of([frame[i] for frame in frames]) for i in range(2)), strict=True
        )
        return cls(video, number, len(frames), *means, *recalls, *decays)


def statistics_of(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean, recall and decay.

    Source: DAVIS' `db_statistics`, which splits the frames into four bins with evenly spaced,
        rounded edges.
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
class Unjudged:
    """Something in the input that no score counts: a video, or a part of it, and the reason."""

    video: str
    reason: str

    def __str__(self) -> str:
        return f"{self.video}: {self.reason}"


@dataclass(frozen=True)
class Report:
    """The objects of all videos. Means are over objects, not over videos, as in the benchmarks.

    unjudged: what the folders have and no score counts.
    """

    objects: list[ObjectScore]
    unjudged: list[Unjudged] = field(default_factory=list)

    def mean(self, name: str) -> float:
        """The mean of a column of `ObjectScore`, 0 to 1; NaN without objects."""
        return (
            float(np.mean([getattr(row, name) for row in self.objects]))
            if self.objects
            else float("nan")
        )

    def by_video(self) -> dict[str, Report]:
        """One report for each video."""
        return self.grouped(lambda row: row.video)

    def grouped(self, key: Any) -> dict[Any, Report]:
        """One report for each value of `key`, such as sizes or categories.

        key: a function of an `ObjectScore`, or a mapping from (video, object).
        """
        groups: dict[Hashable, list[ObjectScore]] = {}
        for row in self.objects:
            try:
                name = key[row.video, row.object] if isinstance(key, Mapping) else key(row)
            except KeyError as error:
                raise ValueError(
                    f"key: expected an entry for object {row.object} of video {row.video}, got none"
                ) from error
            groups.setdefault(name, []).append(row)
        return {name: Report(rows) for name, rows in groups.items()}

    def summary(self) -> dict[str, float]:
        """The number of objects, and the means in percent, NaN without objects."""
        return {"objects": len(self.objects), **{name: 100 * self.mean(name) for name in _SCORES}}

    def save(self, path: str | os.PathLike[str], complete: bool = True) -> None:
        """Write one row per object, in percent, to a `.csv` or `.json` file.

        JSON also lists what was not judged. Means without objects are null, or empty in CSV. The
        file is whole or absent. complete: False says in JSON that videos are missing.
        """
        rows = [_percent(asdict(row) | {"j_and_f": row.j_and_f}) for row in self.objects]
        suffix = Path(path).suffix.lower()
        if suffix not in (".csv", ".json"):
            raise ValueError(f"report: expected a .csv or .json file, got {path}")
        with whole_file(path) as beside, beside.open("w", newline="", encoding="utf-8") as file:
            if suffix == ".json":
                document = {
                    "complete": complete,
                    "summary": self.summary(),
                    "objects": rows,
                    "unjudged": [asdict(item) for item in self.unjudged],
                }
                file.write(to_json(document, indent=1))
            else:
                _write_csv(file, rows, self.summary())


def _percent(row: dict[str, Any]) -> dict[str, Any]:
    return {name: 100 * value if isinstance(value, float) else value for name, value in row.items()}


def _write_csv(file: Any, rows: Iterable[dict[str, Any]], summary: dict[str, float]) -> None:
    writer = csv.DictWriter(file, ["video", "object", "frames", *_SCORES])
    writer.writeheader()
    means = finite({name: summary[name] for name in _SCORES})
    writer.writerow({"video": "all", "object": "", "frames": "", **means})
    writer.writerows(rows)
