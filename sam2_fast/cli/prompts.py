"""Prompts from command-line flags or from a JSON file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sam2_fast.io.json_files import read_json
from sam2_fast.io.limits import MAX_JSON_BYTES

_LARGEST = 2**31 - 1
"""The greatest object id and frame number."""

Box = tuple[float, float, float, float]
Click = tuple[float, float, int]  # x, y, label


@dataclass(frozen=True)
class Prompt:
    """One object on one frame: clicks, a box or both; or a mask file.

    points: (x, y) in pixels.
    labels: one per point, 1 object or 0 background.
    box: (x0, y0, x1, y1) in pixels.
    """

    object_id: int
    frame: int = 0
    points: tuple[tuple[float, float], ...] = ()
    labels: tuple[int, ...] = ()
    box: Box | None = None
    mask: Path | None = None

    def __post_init__(self) -> None:
        name = f"object {self.object_id} on frame {self.frame}"
        if not 0 <= self.frame <= _LARGEST:
            raise ValueError(f"{name}: expected a frame number from 0 to {_LARGEST}")
        if not 0 <= self.object_id <= _LARGEST:
            raise ValueError(f"{name}: id: expected 0 to {_LARGEST}, got {self.object_id}")
        if self.mask is not None and (self.points or self.box):
            raise ValueError(
                f"{name}: a mask cannot be combined with clicks or a box; put those on another "
                f"frame or object"
            )
        if self.mask is None and not self.points and self.box is None:
            raise ValueError(f"{name}: expected points, a box or a mask")
        if len(self.points) != len(self.labels):
            raise ValueError(
                f"{name}: expected a label per point, got {len(self.points)} points and "
                f"{len(self.labels)} labels"
            )


def gather(
    points: list[str],
    boxes: list[str],
    mask: Path | None,
    objects: list[str],
    file: Path | None,
    frame: int = 0,
) -> list[Prompt]:
    """All prompts of a command line, ordered by frame.

    points, boxes, mask: prompts of object 1 on `frame`; several boxes are one object each.
    objects: texts for `parse_object`.
    file: a JSON file for `read_prompts`.
    Raises ValueError if there is no prompt, or if an object is prompted twice on one frame.
    """
    prompts = [parse_object(text) for text in objects]
    if file is not None:
        prompts += read_prompts(file)
    clicks = [_point(text, "--point") for text in points]
    rectangles = [_box(text, "--box") for text in boxes]
    if len(rectangles) > 1 and (clicks or mask):
        raise ValueError(
            "--box: several boxes are one object each and cannot be combined with --point or "
            "--mask; use --object to mix them"
        )
    if len(rectangles) > 1:
        prompts += [
            Prompt(number, frame, box=box) for number, box in enumerate(rectangles, start=1)
        ]
    elif clicks or rectangles or mask:
        box = rectangles[0] if rectangles else None
        prompts.append(Prompt(1, frame, *_split(clicks), box, mask))
    if not prompts:
        raise ValueError("no prompt: give --point, --box, --mask, --object or --prompts")
    seen = [(prompt.object_id, prompt.frame) for prompt in prompts]
    twice = next((key for key in seen if seen.count(key) > 1), None)
    if twice is not None:
        raise ValueError(
            f"object {twice[0]} on frame {twice[1]} is prompted twice; combine its points and box "
            f"in one prompt, or set other ids with --object"
        )
    return sorted(prompts, key=lambda prompt: prompt.frame)


def parse_object(text: str) -> Prompt:
    """Parse `ID:frame=N:point=X,Y[,LABEL]:box=X0,Y0,X1,Y1:mask=FILE`.

    The mask must come last, because file names may contain colons.
    """
    head, separator, mask = text.partition(":mask=")
    first, *parts = head.split(":")
    if not first.strip().isdecimal():
        raise ValueError(
            f"--object {text}: expected a whole number as id, for example 1:point=40,212"
        )
    frame = 0
    box: Box | None = None
    clicks: list[Click] = []
    for part in parts:
        key, equals, value = part.partition("=")
        if key == "point" and equals:
            clicks.append(_point(value, f"--object {text}"))
        elif key == "box" and equals and box is None:
            box = _box(value, f"--object {text}")
        elif key == "frame" and value.isdecimal():
            frame = int(value)
        else:
            raise ValueError(
                f"--object {text}: cannot read {part!r}; expected frame=N, point=X,Y[,LABEL], one "
                f"box=X0,Y0,X1,Y1 or mask=FILE"
            )
    return Prompt(int(first), frame, *_split(clicks), box, Path(mask) if separator else None)


def _split(clicks: list[Click]) -> tuple[tuple[tuple[float, float], ...], tuple[int, ...]]:
    """Positions (x, y) and labels of clicks."""
    return tuple((x, y) for x, y, _ in clicks), tuple(label for _, _, label in clicks)


def read_prompts(path: Path, *, max_bytes: int = MAX_JSON_BYTES) -> list[Prompt]:
    """Read prompts from a JSON file, with one entry per object and frame:

      {"objects": [{"id": 1, "frame": 0, "points": [[x, y]], "labels": [1],
                    "box": [x0, y0, x1, y1], "mask": "file.png"}]}

    `frame` defaults to 0, `labels` to 1 for every point. A mask path is relative to the JSON file.
    max_bytes: limit of the file.
    """
    document = read_json(path, "--prompts", max_bytes=max_bytes)
    entries = document.get("objects") if isinstance(document, dict) else None
    if not isinstance(entries, list) or not entries:
        raise ValueError(
            f'--prompts {path}: expected {{"objects": [...]}} with at least one object'
        )
    return [
        _entry(entry, f"--prompts {path}: objects[{number}]", path.parent)
        for number, entry in enumerate(entries)
    ]


def _entry(entry: Any, name: str, directory: Path) -> Prompt:
    if not isinstance(entry, dict):
        raise ValueError(f"{name}: expected an object with id, frame, points, labels, box, mask")
    unknown = sorted(set(entry) - {"id", "frame", "points", "labels", "box", "mask"})
    if unknown:
        raise ValueError(
            f"{name}: unknown key {unknown[0]!r}; expected id, frame, points, labels, box, mask"
        )
    points = _rows(entry.get("points", []), 2, f"{name}.points")
    labels = entry.get("labels", [1] * len(points))
    if not isinstance(labels, list) or not all(
        type(label) is int and label in (0, 1) for label in labels
    ):
        raise ValueError(
            f"{name}.labels: expected a list of 1 (object) and 0 (background), got {labels!r}"
        )
    box = _rows([entry["box"]], 4, f"{name}.box")[0] if entry.get("box") is not None else None
    mask = entry.get("mask")
    if mask is not None and not isinstance(mask, str):
        raise ValueError(f"{name}.mask: expected a file name, got {mask!r}")
    return Prompt(
        _whole(entry.get("id"), f"{name}.id"),
        _whole(entry.get("frame", 0), f"{name}.frame"),
        tuple((x, y) for x, y in points),
        tuple(labels),
        _ordered(box, name) if box else None,
        directory / mask if mask else None,
    )


def _whole(value: Any, name: str) -> int:
    if type(value) is not int:
        raise ValueError(f"{name}: expected a whole number, got {value!r}")
    return value


def _rows(rows: Any, width: int, name: str) -> list[tuple[float, ...]]:
    valid = isinstance(rows, list) and all(
        isinstance(row, list) and len(row) == width for row in rows
    )
    if not valid or not all(_is_finite(x) for row in rows for x in row):
        raise ValueError(f"{name}: expected {width} finite numbers each, got {rows!r:.200}")
    return [tuple(float(x) for x in row) for row in rows]


def _is_finite(value: Any) -> bool:
    """Whether a JSON value is a number that float can hold; JSON has integers of any size."""
    if type(value) is int:
        return abs(value) < 2**1023
    return type(value) is float and math.isfinite(value)


def _numbers(text: str, name: str, counts: tuple[int, ...], shape: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in counts or not all(math.isfinite(number) for number in numbers):
        raise ValueError(f"{name}: expected {shape}, got {text!r}")
    return numbers


def _point(text: str, name: str) -> Click:
    numbers = _numbers(text, name, (2, 3), "X,Y or X,Y,LABEL")
    label = numbers[2] if len(numbers) == 3 else 1
    if label not in (0, 1):
        raise ValueError(f"{name}: expected label 1 (object) or 0 (background), got {label:g}")
    return numbers[0], numbers[1], int(label)


def _box(text: str, name: str) -> Box:
    return _ordered(tuple(_numbers(text, name, (4,), "X0,Y0,X1,Y1")), name)


def _ordered(box: tuple[float, ...], name: str) -> Box:
    x0, y0, x1, y1 = box
    if x1 < x0 or y1 < y0:
        raise ValueError(
            f"{name}: expected a box with X0 <= X1 and Y0 <= Y1, got {x0:g},{y0:g},{x1:g},{y1:g}"
        )
    return x0, y0, x1, y1
