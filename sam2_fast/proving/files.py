"""Where verdicts lie on disk, and locks between processes."""

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

    Raises OSError where there is no such place: no home directory, or a system without file locks.
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
    """Hold the lock file `path`, which is made where it is missing. Waits for other processes.

    Raises OSError where it cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


class Mark:
    """A file that says that work is under way, locked while its process lives.

    A process that dies leaves the file without its lock, and the next one counts it.
    """

    def __init__(self, path: Path, descriptor: int, earlier: int) -> None:
        self._path, self._descriptor = path, descriptor
        self.earlier = earlier
        """How many processes began before and died."""

    def remove(self) -> None:
        """The work is over, or was interrupted on purpose."""
        self._path.unlink(missing_ok=True)
        os.close(self._descriptor)

    def leave(self) -> None:
        """The work took the process's device with it: count it as a process that died."""
        os.close(self._descriptor)


def begin(path: Path) -> Mark | None:
    """Mark work as under way; None where another live process does the same work.

    Raises OSError where no file can be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        if os.fstat(descriptor).st_nlink:  # else its owner removed it before it was locked
            break
        os.close(descriptor)
    earlier = _count(os.read(descriptor, 16))
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(earlier + 1).encode(), 0)
    os.fsync(descriptor)
    return Mark(path, descriptor, earlier)


def _count(text: bytes) -> int:
    return int(text) if text.isdigit() else 0
