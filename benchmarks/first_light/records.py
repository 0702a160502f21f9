"""Results as JSON lines, written as soon as they are known. Imports the standard library only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def append(path: Path, record: Record) -> None:
    """Append one line to the file."""
    with path.open("a") as file:
        file.write(json.dumps(record, default=str) + "\n")


def read(path: Path) -> list[Record]:
    """All records of the file, without an incomplete last line."""
    records = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def begin(path: Path, command: str, date: str) -> None:
    """Append a record that starts a run. Earlier records in the file belong to other runs."""
    append(path, {"step": "run", "item": "command", "command": command, "date": date})


def this_run(records: list[Record]) -> list[Record]:
    """The records since the last `begin`."""
    starts = [i for i, r in enumerate(records) if (r["step"], r["item"]) == ("run", "command")]
    return records[starts[-1] :] if starts else records


def is_good(record: Record) -> bool:
    """Whether an item neither failed nor had a wrong result."""
    return not record.get("status", "ok").startswith(("failed", "WRONG"))
