"""A tracking run on disk: what it was asked for, which frames it has finished, how to continue it.

`run.json` names the input, the settings, and the position, name and time of every finished frame.
While a run is not complete, the folder `unfinished` has one row for each finished frame, and, after
an orderly end, the memories of the objects.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any

from sam2_fast.cli.results import RUN, UNFINISHED
from sam2_fast.files.atomic import whole_file
from sam2_fast.io.frame_folder import frame_files
from sam2_fast.io.json_files import parse_json, read_json, to_json
from sam2_fast.io.mask_writers import FrameLabel

_FORMAT = "sam2_fast.run"
_VERSION = 1
_SESSION = "session_"
_ROWS = "rows.jsonl"


class Run:
    """One run in an output directory: `start` a new one or `resume` an earlier one; `close` it.

    settings: all that the result depends on, ready for JSON. facts: more entries of `run.json`.
    labels: finished frames in the order of tracking. areas: pixels of each object on them.
    """

    def __init__(self, directory: Path, settings: dict[str, Any], facts: dict[str, Any]) -> None:
        self.directory = directory
        self.settings = settings
        self.facts = facts
        self.labels: list[FrameLabel] = []
        self.areas: dict[int, dict[int, int]] = {}
        self._unfinished = directory / UNFINISHED
        self._rows: Any = None

    def start(self) -> None:
        """Create the files. Raises ValueError if another run has started there meanwhile."""
        try:
            with (self.directory / RUN).open("x", encoding="ascii") as file:
                file.write(to_json(self.document(False)) + "\n")
        except FileExistsError as error:
            raise ValueError(f"--output {self.directory}: another run has started there") from error
        started = False
        try:
            self._unfinished.mkdir()
            self._rows = _locked(self.directory)
            started = True
        finally:
            if not started:
                self.forget()

    def resume(self) -> None:
        """Read the finished frames of the unfinished run in the directory.

        Raises ValueError if it has other settings, or if another process is writing it.
        """
        check_settings(self.directory, self.settings)
        self._unfinished.mkdir(exist_ok=True)
        file = _locked(self.directory)
        end = 0
        for end_of_row, row in self._read_rows():
            self._add(row)
            end = end_of_row
        file.truncate(end)
        file.seek(end)
        self._rows = file

    @property
    def done(self) -> set[int]:
        """Positions of the finished frames."""
        return {label.frame for label in self.labels}

    def add(self, row: dict[str, Any], text: str) -> None:
        """Store a finished frame: its `mask_writers.frame_entry`, and this entry as JSON."""
        start = self._rows.tell()
        try:
            self._rows.write(f"{text}\n".encode("ascii"))
        except OSError:
            self._rows.truncate(start)
            self._rows.seek(start)
            raise
        self._add(row)

    def rows(self) -> Iterator[dict[str, Any]]:
        """The entries of all finished frames, in the order of tracking, read from the file."""
        return (row for _, row in self._read_rows())

    def session_file(self, last: int) -> Path:
        """The file of the memories after frame `last` was tracked."""
        return self._unfinished / f"{_SESSION}{last}.safetensors"

    def saved_session(self) -> tuple[int, Path] | None:
        """The last tracked frame, and the file of the memories after it; None if there is none."""
        for path in self._unfinished.glob(f"{_SESSION}*.safetensors"):
            return int(path.stem.removeprefix(_SESSION)), path
        return None

    def close(self, complete: bool, frames: int | None = None) -> None:
        """Write `run.json`. A complete run needs the folder `unfinished` no more.

        frames: how many of the finished frames the mask files have; None: all.
        """
        self._rows.close()
        with whole_file(self.directory / RUN) as beside:
            beside.write_text(to_json(self.document(complete, frames)) + "\n", encoding="ascii")
        if complete:
            shutil.rmtree(self._unfinished)

    def forget(self) -> None:
        """Remove `run.json` and the folder `unfinished` of a run without a finished frame."""
        self.suspend()
        if self._unfinished.exists():
            shutil.rmtree(self._unfinished)
        (self.directory / RUN).unlink()

    def suspend(self) -> None:
        """Leave the run as it is on disk."""
        if self._rows is not None:
            self._rows.close()

    def keep_session(self, last: int) -> None:
        """Remove the files of memories after other frames than `last`."""
        for path in self._unfinished.glob(f"{_SESSION}*"):
            if path != self.session_file(last):
                path.unlink()

    def document(self, complete: bool, frames: int | None = None) -> dict[str, Any]:
        """The content of `run.json`; arguments as of `close`."""
        labels = [label._asdict() for label in self.labels[:frames]]
        header = {"format": _FORMAT, "version": _VERSION, "complete": complete}
        objects = {"objects": _objects(self.areas), "settings": self.settings}
        return {**header, **self.facts, **objects, "frames": labels}

    def _add(self, row: dict[str, Any]) -> None:
        label = FrameLabel(row["frame"], row["name"], row["seconds"])
        self.labels.append(label)
        self.areas[label.frame] = {entry["id"]: entry["area"] for entry in row["objects"]}

    def _read_rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """(end in the file, row) of every whole row; a process that was killed may leave a part."""
        path = self._unfinished / _ROWS
        if not path.exists():
            return
        end = 0
        with path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    return
                end += len(line)
                yield end, _checked_row(parse_json(line, f"run {path}"), path)


def _checked_row(row: Any, path: Path) -> dict[str, Any]:
    """A row of a finished frame; raises ValueError for other JSON."""
    try:
        label = FrameLabel(row["frame"], row["name"], row["seconds"])
        numbers = [label.frame, *(n for e in row["objects"] for n in (e["id"], e["area"]))]
    except (KeyError, TypeError) as error:
        raise ValueError(f"run {path}: expected rows of finished frames") from error
    is_time = label.seconds is None or type(label.seconds) in (int, float)
    if not all(type(n) is int for n in numbers) or type(label.name) is not str or not is_time:
        raise ValueError(f"run {path}: expected rows of finished frames")
    return dict(row)


def read_run(directory: Path) -> dict[str, Any] | None:
    """The content of `run.json`, or None if there is no such file.

    Raises ValueError for a file of another kind.
    """
    path = directory / RUN
    if not path.exists():
        return None
    document = read_json(path, "run")
    is_run = isinstance(document, dict) and document.get("format") == _FORMAT
    if not is_run or not isinstance(document.get("settings", {}), dict):
        raise ValueError(f"run {path}: not a {_FORMAT} file")
    return dict(document)


def check_settings(directory: Path, settings: dict[str, Any]) -> None:
    """Raise ValueError if the run of a directory has other settings than these."""
    earlier = (read_run(directory) or {}).get("settings", {})
    current = json.loads(to_json(settings))
    for name in sorted(earlier.keys() | current.keys()):
        if earlier.get(name) != current.get(name):
            raise ValueError(
                f"--resume: the run in {directory} has {name} {json.dumps(earlier.get(name))}, "
                f"this command has {json.dumps(current.get(name))}; use the same options, or "
                "--overwrite to start again"
            )


def refuse_running(directory: Path) -> None:
    """Raise ValueError if another process is writing the run of a directory."""
    if (directory / UNFINISHED / _ROWS).exists():
        _locked(directory).close()


def _locked(directory: Path) -> FileIO:
    """The file of rows, to append to it, locked for this process if the system can lock files.

    Raises ValueError if another process has locked it.
    """
    file = (directory / UNFINISHED / _ROWS).open("ab", buffering=0)
    try:
        with suppress(ImportError):
            import fcntl

            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise ValueError(f"--output {directory}: another process is writing there") from error
    return file


def identity(path: Path) -> list[Any]:
    """What tells whether a file or a folder of frames has changed: size and time, or names."""
    if path.is_dir():
        return [file.name for file in frame_files(path)]
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _objects(areas: dict[int, dict[int, int]]) -> list[dict[str, int]]:
    ids = sorted({object_id for frame in areas.values() for object_id in frame})
    return [
        {"id": key, "frames_present": sum(frame.get(key, 0) > 0 for frame in areas.values())}
        for key in ids
    ]
