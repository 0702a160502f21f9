"""Files that are written completely or not at all: to a temporary file, which is then renamed."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY = ".tmp"
"""The suffix of temporary files. A process that was killed may leave them behind."""

_LONGEST_NAME = 255  # bytes of a file name, on the usual file systems


class PendingFile:
    """A file to be written: write to `temporary`, then call `commit` or `discard`.

    `temporary` is in the directory of the file, which is created if it is missing, and exists,
    empty, from the start. Its name is random, because processes of different containers may have
    the same number. It is created exclusively, so a link with this name is never followed.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._target = Path(path)
        self._target.parent.mkdir(parents=True, exist_ok=True)
        while True:
            suffix = f".{secrets.token_hex(8)}{TEMPORARY}"
            stem = os.fsencode(self._target.name)[: _LONGEST_NAME - len(suffix)]
            self.temporary = self._target.with_name(os.fsdecode(stem) + suffix)
            try:
                self.temporary.touch(exist_ok=False)
                return
            except FileExistsError:
                continue

    def commit(self) -> None:
        """Rename the temporary file to its final name; an older file is replaced."""
        os.replace(self.temporary, self._target)

    def discard(self) -> None:
        """Delete the temporary file; an older file with the final name is not changed."""
        self.temporary.unlink(missing_ok=True)


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields the temporary path to write to.

    At the end the file gets its final name; after an error it is deleted.
    """
    pending = PendingFile(path)
    try:
        yield pending.temporary
        pending.commit()
    finally:
        pending.discard()
