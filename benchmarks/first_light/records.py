"""Results as JSON lines, written as soon as they are known. Standard library only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def append(path: Path, record: Record) -> None:
    """Add one line; it is on disk when this returns."""
    with path.open("a") as file:
        file.write(json.dumps(record, default=str) + "\n")


def read(path: Path) -> list[Record]:
    """All records. A last line that was cut off while it was written is left out."""
    found = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found
