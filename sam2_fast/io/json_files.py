"""Read and write JSON: a byte order mark is accepted, and numbers that are not finite are null."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any


def read_json(path: str | os.PathLike[str], label: str) -> Any:
    """The content of a JSON file in UTF-8, with or without a byte order mark.

    label: names the kind of file in errors. Raises FileNotFoundError if there is no such file, and
    ValueError, which names the file, if it is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{label} {path}: not JSON ({error})") from error


def to_json(value: Any, *, indent: int | None = None) -> str:
    """JSON text that strict parsers accept: NaN and infinity become null."""
    return json.dumps(finite(value), indent=indent, allow_nan=False)


def finite(value: Any) -> Any:
    """`value` with None for each NaN and infinity, in dictionaries, lists and tuples, too."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value
