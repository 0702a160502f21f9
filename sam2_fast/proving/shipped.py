"""Choices that are part of the package: a JSON file for each compute capability."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sam2_fast.proving.store import Choice, CorruptError, Point, choice_of

DIRECTORY = Path(__file__).resolve().parents[1] / "choices"
FORMAT, VERSION = "sam2_fast.choices", 1
SOURCES = ("measured", "forecast")


def path_of(capability: int, directory: Path = DIRECTORY) -> Path:
    """The file of one architecture."""
    return directory / f"sm_{capability}.json"


def shipped(capability: int | None, directory: Path = DIRECTORY) -> dict[Point, Choice]:
    """The choices of one architecture; none for CPUs and architectures without a file.

    Raises CorruptError for a file of another format; the tests check the files of the package.
    """
    if capability is None or not path_of(capability, directory).is_file():
        return {}
    return {c.at: c for c in parse(path_of(capability, directory).read_text(encoding="utf-8"))}


def parse(text: str) -> list[Choice]:
    """The choices in the text of a file. Raises CorruptError."""
    try:
        document: dict[str, Any] = json.loads(text)
        if document["format"] != FORMAT or document["version"] != VERSION:
            raise CorruptError(f"expected format {FORMAT}, version {VERSION}")
        choices = [choice_of(c) for c in document["choices"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptError(f"not a file of choices: {error}") from error
    wrong = sorted({c.source for c in choices} - {*SOURCES})
    if wrong:
        raise CorruptError(f"source: expected one of {SOURCES}, got {wrong}")
    return choices
