"""Result files of earlier runs in an output directory: recognised, refused, or removed."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from PIL import Image, UnidentifiedImageError

from sam2_fast.cli.report import note
from sam2_fast.cli.signals import deferred_signals
from sam2_fast.files.atomic import TEMPORARY, PendingFile
from sam2_fast.io.mask_png import SOFTWARE

RUN = "run.json"
UNFINISHED = "unfinished"
MASKS = "masks"
_JSON_START = b'{"format": "sam2_fast.'
_NAMES = re.compile(
    r"(masks|run)\.json|masks\.png|overlay\.(png|mp4|webp)|masks|unfinished|\d{3,}\.png"
)


def earlier_results(directory: Path) -> list[Path]:
    """Entries of a directory with the names of result files of `segment`, `track`, `everything`."""
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if _NAMES.fullmatch(path.name))


def refuse_results(directory: Path, ways: str = "--overwrite to replace them") -> None:
    """Raise ValueError if a directory has results of an earlier run. ways: out of the error."""
    results = earlier_results(directory)
    if results:
        raise ValueError(
            f"--output {directory}: has results of an earlier run ({results[0].name}"
            f"{', ...' if len(results) > 1 else ''}); use {ways}, or another directory"
        )


def refuse_foreign(directory: Path) -> None:
    """Raise ValueError if a file with the name of a result was not written by this program."""
    results = earlier_results(directory)
    is_run = any(path.name == RUN and _is_own(path) for path in results)
    for path in results:
        of_run = path.suffix in (".mp4", ".webp") or path.name in (UNFINISHED, MASKS)
        if not (is_run if of_run else _is_own(path)):
            raise ValueError(
                f"--overwrite: {path} was not written by sam2-fast; move it away, or choose "
                "another --output"
            )


def remove_results(directory: Path) -> None:
    """Remove the results of an earlier run; files of other origin stay.

    Raises ValueError, before anything is removed, as `refuse_foreign` does.
    """
    refuse_foreign(directory)
    remove_temporary(directory)
    for path in earlier_results(directory):
        if path.name == UNFINISHED:
            shutil.rmtree(path)
        elif path.is_dir():
            _remove_masks(path)
        else:
            path.unlink()


def remove_temporary(directory: Path) -> None:
    """Remove the temporary files that a killed process has left in an output directory."""
    names = f"*.????????{TEMPORARY}"
    for pattern in (names, f"{MASKS}/{names}", f"{MASKS}/*/{names}"):
        for path in directory.glob(pattern):
            path.unlink()


def _remove_masks(directory: Path) -> None:
    folders = [directory, *(p for p in directory.iterdir() if p.is_dir() and p.name.isdigit())]
    for folder in folders:
        for path in folder.glob("*.png"):
            if path.is_file() and _is_own(path):
                path.unlink()
    for folder in reversed(folders):
        if not any(folder.iterdir()):
            folder.rmdir()


def _is_own(path: Path) -> bool:
    """Whether this library has written a PNG or JSON file."""
    if path.suffix == ".json":
        with path.open("rb") as file:
            return file.read(len(_JSON_START)) == _JSON_START
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return image.info.get("Software") == SOFTWARE
    except (UnidentifiedImageError, OSError, SyntaxError):
        return False


@contextmanager
def writable_directory(directory: Path) -> Iterator[None]:
    """Create a directory and check that it can be written to.

    At the end, directories that were created and are empty are removed. Raises OSError at once if
    nothing can be written there.
    """
    created = [path for path in (directory, *directory.parents) if not path.exists()]
    try:
        probe = PendingFile(directory / "probe")
        try:
            probe.temporary.write_bytes(b"")
        finally:
            probe.discard()
        yield
    finally:
        for path in created:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()


def refuse_file(path: Path | None, option: str, overwrite: bool) -> None:
    """Raise ValueError if a file to be written exists, unless `overwrite`."""
    if path is not None and not overwrite and os.path.lexists(path):
        raise ValueError(f"{option} {path}: exists; use --overwrite to replace it")


class Savable(Protocol):
    """A report that can be written before it is complete."""

    def save(self, path: Path, complete: bool = True) -> None: ...


class Unfinished:
    """The newest report of a command on many videos, which is saved if a later video fails."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._report: Savable | None = None
        self._videos = 0

    def keep(self, report: Savable) -> None:
        """Replace the report; called after each video."""
        self._report = report
        self._videos += 1

    @contextmanager
    def saved_on_error(self) -> Iterator[None]:
        """Save the newest report if the block raises, or is interrupted."""
        finished = False
        try:
            yield
            finished = True
        finally:
            if not finished and self._report is not None and self._path is not None:
                with deferred_signals():
                    self._report.save(self._path, complete=False)
                note(f"the results of {self._videos} videos are in {self._path}")
