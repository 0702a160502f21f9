"""The directory of verdicts on disk, and file locks between processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

DIRECTORY = "SAM2_FAST_CACHE"
"""Environment variable that names the directory of the cache."""


def cache_directory() -> Path:
    """`$SAM2_FAST_CACHE`, else `$XDG_CACHE_HOME/sam2_fast`, else `~/.cache/sam2_fast`.

    Raises OSError without a home directory, and on systems without file locks.
    """
    if fcntl is None:
        raise OSError("this system has no file locks (fcntl)")
    if named := os.environ.get(DIRECTORY):
        return Path(named)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "sam2_fast"
    try:
        return Path.home() / ".cache" / "sam2_fast"
    except RuntimeError as error:
        raise OSError(f"no home directory: {error}") from error


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of the file `path`, which is created if missing. Waits for other processes.

    Raises OSError if the file cannot be created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


class ProgressFile:
    """A file that shows that some work is in progress. It is locked while its process lives.

    A process that dies leaves the file without a lock, and the next process counts it.
    """

    def __init__(self, path: Path, descriptor: int, earlier: int) -> None:
        self._path = path
        self._descriptor = descriptor
        self.earlier = earlier
        """Number of processes that started the work earlier and died."""

    def remove(self) -> None:
        """Delete the file: the work is done, or was interrupted on purpose."""
        self._path.unlink(missing_ok=True)
        os.close(self._descriptor)

    def leave(self) -> None:
        """Leave the file as if the process had died: the device was lost during the work."""
        os.close(self._descriptor)


def begin(path: Path) -> ProgressFile | None:
    """Create the progress file of some work, or None if another live process does this work.

    Raises OSError if no file can be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        if os.fstat(descriptor).st_nlink:  # else another process removed it before this lock
            break
        os.close(descriptor)
    earlier = _count(os.read(descriptor, 16))
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(earlier + 1).encode(), 0)
    os.fsync(descriptor)
    return ProgressFile(path, descriptor, earlier)


def _count(text: bytes) -> int:
    return int(text) if text.isdigit() else 0
