"""Files of a folder by their names without suffix; suffixes may be in capitals."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
"""Suffixes of images, the preferred ones first."""


def natural(name: str) -> list[tuple[int, str]]:
    """A key that orders names by the numbers in them: "9" before "10", "a2" before "a10"."""
    parts = re.split(r"([0-9]+)", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts if part]


def files_by_stem(
    folder: str | os.PathLike[str], suffixes: Iterable[str], label: str
) -> dict[str, Path]:
    """The files of `folder` with one of `suffixes`, by name without suffix, in natural order.

    Hidden files and files with other suffixes are passed over. If files of one
    name differ in suffix, the suffix that comes first in `suffixes` is preferred.
    suffixes: in small letters; may be longer than from the last dot, such as "_manual.json".
    label: names the kind of file in errors. Raises ValueError if two names differ only in the case
    of the suffix.
    """
    order = list(suffixes)
    files: dict[str, Path] = {}
    rank: dict[str, int] = {}
    with os.scandir(folder) as entries:
        names = sorted(e.name for e in entries if not e.name.startswith(".") and e.is_file())
    for name in names:
        suffix = next((s for s in order if name.lower().endswith(s)), None)
        if suffix is None:
            continue
        path = Path(folder) / name
        stem = name[: -len(suffix)]
        number = order.index(suffix)
        if rank.get(stem) == number:
            raise ValueError(
                f"{label} {folder}: {files[stem].name} and {path.name} have the same name; remove "
                f"one of them"
            )
        if number < rank.get(stem, len(order)):
            files[stem], rank[stem] = path, number
    return {stem: files[stem] for stem in sorted(files, key=natural)}


def same_number(name: str, others: Iterable[str]) -> list[str]:
    """Those of `others` that are the same number as `name` with another count of zeros."""
    if not name.isdecimal():
        return []
    return [other for other in others if other.isdecimal() and int(other) == int(name)]
