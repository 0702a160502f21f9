"""Files that are either whole or not there: written beside their place, then renamed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class PendingFile:
    """A file in the making: write to `beside` (same directory, made if missing), then `commit` or
    `discard`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._target = Path(path)
        self._target.parent.mkdir(parents=True, exist_ok=True)
        self.beside = self._target.with_name(f"{self._target.name}.{os.getpid()}.tmp")

    def commit(self) -> None:
        """Put the file in its place, over an older one."""
        os.replace(self.beside, self._target)

    def discard(self) -> None:
        """Delete what was written; an older file at the place stays."""
        self.beside.unlink(missing_ok=True)


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields the path to write to; the file is put in place at the end, and dropped if an error
    passes.
    """
    pending = PendingFile(path)
    try:
        yield pending.beside
        pending.commit()
    finally:
        pending.discard()
