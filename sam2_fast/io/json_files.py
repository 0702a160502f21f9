"""Read and write JSON: a byte order mark is accepted, and numbers that are not finite are null."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from sam2_fast.files.reasons import reason_of
from sam2_fast.io.limits import BYTES_PER_VALUE, MAX_JSON_BYTES, check_regular


def read_text(
    path: str | os.PathLike[str],
    label: str,
    *,
    max_bytes: int = MAX_JSON_BYTES,
    advice: str = "raise the limit with max_bytes=",
) -> str:
    """The text of a file in UTF-8, with or without a byte order mark.

    label: names the kind of file in errors. advice: ends the error above the limit.
    Raises FileNotFoundError if there is no such file, and
    ValueError, which names the file, if it is not a text file or larger than `max_bytes`.
    """
    file = Path(path)
    name = f"{label} {path}"
    check_regular(file, name)
    with file.open("rb") as stream:
        data = stream.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ValueError(f"{name}: is larger than {max_bytes} bytes; {advice}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: not text in UTF-8 ({reason_of(error)})") from error


def read_json(path: str | os.PathLike[str], label: str, *, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """The content of a JSON file in UTF-8, with or without a byte order mark.

    label: names the kind of file in errors. Raises FileNotFoundError if there is no such file, and
    ValueError, which names the file, if it is not JSON, is larger than `max_bytes`, or has more
    values than one for each 32 bytes of this limit.
    """
    text = read_text(path, label, max_bytes=max_bytes)
    # Each list, object and item after the first costs far more than its characters.
    values = text.count(",") + text.count("[") + text.count("{")
    if values > max(1, max_bytes // BYTES_PER_VALUE):
        raise ValueError(
            f"{label} {path}: has {values} values, the limit is {max_bytes // BYTES_PER_VALUE}; "
            f"raise it with max_bytes="
        )
    return parse_json(text, f"{label} {path}")


def parse_json(text: str | bytes, name: str) -> Any:
    """The content of JSON text. name: starts the ValueError that is raised for other text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: not JSON ({reason_of(error)})") from error


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
