"""Presentation of evaluations: groups of objects by a column of a table, and plots of curves."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sam2_fast.files.atomic import whole_file
from sam2_fast.files.reasons import one_line, reason_of
from sam2_fast.io.json_files import read_text
from sam2_fast.io.limits import MAX_JSON_BYTES

PathLike = str | os.PathLike[str]

MAX_DIGITS = 18
"""Most digits of the number of an object."""


def groups_from_csv(
    path: PathLike, column: str, *, max_bytes: int = MAX_JSON_BYTES
) -> Mapping[tuple[str, int], str]:
    """(video, object) -> the value of `column` in a CSV file, for `Report.grouped`.

    The columns are `video`, `column`, and `object` if the objects of a video differ. Uses:
    attributes of the people in a video (fairness), categories, or the seen and unseen classes of
    YouTube-VOS.
    max_bytes: limit of the file.
    Raises FileNotFoundError, or ValueError, which names the file, if it is another file.
    """
    try:
        reader = csv.DictReader(
            io.StringIO(read_text(path, "groups", max_bytes=max_bytes), newline="")
        )
        names = reader.fieldnames or []
        if "video" not in names or column not in names:
            raise ValueError(
                f"groups {path}: expected columns video and {column}, got "
                f"{one_line(', '.join(names)) or 'none'}"
            )
        rows = list(reader)
    except csv.Error as error:
        raise ValueError(f"groups {path}: not a CSV file ({reason_of(error)})") from error
    if any(row["video"] is None or row[column] is None for row in rows):
        raise ValueError(f"groups {path}: expected a value of video and {column} in each row")
    if "object" in names:
        return {(row["video"], _object(row, path)): row[column] for row in rows}
    return _AnyObject({row["video"]: row[column] for row in rows})


def _object(row: dict[str, str], path: PathLike) -> int:
    text = row["object"] or ""
    if not text.strip().isdecimal() or len(text) > MAX_DIGITS:
        raise ValueError(
            f"groups {path}: expected a number in the column object, got {text!r:.50} for video "
            f"{one_line(row['video'])}"
        )
    return int(text)


class _AnyObject(dict[Any, str]):
    """A mapping from video to value that ignores the object in a key."""

    def __missing__(self, key: Any) -> str:
        if isinstance(key, tuple) and key[0] in self:
            return self[key[0]]
        raise KeyError(key)


def save_curves(
    curves: Mapping[str, Mapping[int, float]],
    path: str | os.PathLike[str],
    *,
    across: str = "prompted frames",
) -> None:
    """Plot J&F, fractions from 0 to 1, over `across`, with one line for each name.

    path: a .svg, .png or .pdf file. Needs matplotlib (the extra `plots`).
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("matplotlib is not installed: pip install 'sam2-fast[plots]'") from error
    suffix = Path(path).suffix.lower()
    if suffix not in (".svg", ".png", ".pdf"):
        raise ValueError(f"plot: expected a .svg, .png or .pdf file, got {path}")
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot(xlabel=across, ylabel="J&F (%)")
    for name, curve in curves.items():
        axes.plot(list(curve), [100 * value for value in curve.values()], marker="o", label=name)
    axes.grid(alpha=0.3)
    if len(curves) > 1:
        axes.legend()
    with whole_file(path) as beside:
        figure.savefig(
            beside, format=suffix[1:], metadata={"Date": None} if suffix == ".svg" else None
        )
