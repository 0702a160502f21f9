"""Read a PyTorch file after its structure has been checked, so that it costs what it contains.

Both formats of `torch.save` are read: zip archives, and the older one of several pickles.
"""

from __future__ import annotations

import io
import pickle
import stat
import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from sam2_fast.files.pickles import CodeError, Storage, inspect
from sam2_fast.files.reasons import reason_of

_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch.serialization.MAGIC_NUMBER as a pickle
_END = b"PK\x05\x06"
_LOCATOR = b"PK\x06\x07"

MAX_HEADER_BYTES = 16 << 20
"""Largest description of the tensors that is read: the header of a safetensors file, or the pickle
of a `.pt` file. Those of the released models have about 100 kB."""

READ_ERRORS = (
    *(RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError),
    *(OSError, EOFError, ArithmeticError, MemoryError, struct.error),
    *(pickle.UnpicklingError, zipfile.BadZipFile, NotImplementedError),
)
"""Errors of torch and of zipfile for damaged files."""


class WeightsFileError(ValueError):
    """A PyTorch file that cannot be read; the message is the reason, without the file's name."""


def read_pickle_file(path: Path, max_header_bytes: int) -> Any:
    """The content of a file of `torch.save`, with tensors on the CPU. No code of the file runs.

    The structure is checked first. Memory of at most a few times the size of the file is used.
    max_header_bytes: limit of its pickle, and of the directory of an archive.
    Raises WeightsFileError if the file is damaged, not of `torch.save`, compressed, or holds
    anything but tables of tensors and plain values.
    """
    try:
        check_pickle_file(path, max_header_bytes)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (CodeError, pickle.UnpicklingError) as error:
        reason = f": {error}" if isinstance(error, CodeError) else ""
        raise WeightsFileError(
            f"refused: not a plain table of tensors, or loading it would run code{reason}"
        ) from error
    except READ_ERRORS as error:
        reason = reason_of(error)[:200]
        raise WeightsFileError(f"not a readable PyTorch checkpoint ({reason})") from error


def check_pickle_file(path: Path, max_header_bytes: int) -> None:
    """Raise ValueError or another of `READ_ERRORS` unless the file may be passed to `torch.load`.

    CodeError, a ValueError, is for files that ask for code. Reads headers and pickles, no numbers.
    """
    with path.open("rb") as stream:
        size = path.stat().st_size
        head = stream.read(2)
        if head == b"PK":
            _check_archive(stream, size, max_header_bytes)
        else:
            _check_legacy(stream, size, max_header_bytes)


def check_regular(path: Path) -> None:
    """Raise FileNotFoundError if there is no such file; WeightsFileError for a pipe or a device."""
    if not path.exists():
        raise FileNotFoundError(f"checkpoint {path}: no such file")
    if not stat.S_ISREG(path.stat().st_mode):
        raise WeightsFileError("expected a file, got a folder, a pipe or a device")
    if path.stat().st_size == 0:
        raise WeightsFileError("the file is empty (0 bytes); download it again")


def _check_archive(stream: BinaryIO, size: int, max_header_bytes: int) -> None:
    _check_directory(stream, size, max_header_bytes)
    with zipfile.ZipFile(stream) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError("the archive is compressed; save it again with torch.save")
        if sum(max(m.file_size, m.compress_size) for m in members) > size:
            raise ValueError("its members claim more bytes than the file has")
        sizes = {member.filename.casefold(): member.file_size for member in members}
        if len(sizes) != len(members):
            raise ValueError("two members of the archive have the same name")
        folder = members[0].filename.partition("/")[0]
        name = f"{folder}/data.pkl"
        if sizes.get(name.casefold(), 0) > max_header_bytes:
            raise ValueError(
                f"its pickle is larger than {max_header_bytes} bytes; raise the limit with "
                "max_header_bytes="
            )
        contents = inspect(io.BytesIO(archive.read(name)), max_header_bytes)
    for storage in contents.storages.values():
        if sizes.get(f"{folder}/data/{storage.key}".casefold(), -1) < storage.total_bytes:
            raise ValueError(
                f"the storage {storage.key} claims {storage.total_bytes} bytes, which the archive "
                f"does not have"
            )


def _check_directory(stream: BinaryIO, size: int, max_header_bytes: int) -> None:
    """Raise ValueError if the directory of a zip archive is too large to be listed."""
    start = max(0, size - 2**16 - 42)
    stream.seek(start)
    tail = stream.read()
    end = tail.rfind(_END)
    if end < 0 or len(tail) < end + 22:
        raise ValueError("the archive has no end; the file is cut off")
    directory = struct.unpack_from("<I", tail, end + 12)[0]
    if end >= 20 and tail[end - 20 : end - 16] == _LOCATOR:
        stream.seek(min(struct.unpack_from("<Q", tail, end - 12)[0], size))
        record = stream.read(56)
        directory = struct.unpack_from("<Q", record, 40)[0]
    if directory > max_header_bytes // 2:  # listing it needs several times its size
        raise ValueError(
            f"the directory of the archive is larger than {max_header_bytes // 2} bytes; raise the "
            "limit with max_header_bytes="
        )
    stream.seek(0)


def _check_legacy(stream: BinaryIO, size: int, max_header_bytes: int) -> None:
    """Check the pickles of the older format: magic number, version, system, content, keys."""
    stream.seek(0)
    head = io.BytesIO(stream.read(max_header_bytes))
    start = head.getvalue()[: 2 + len(_MAGIC)]
    if start[:1] != b"\x80" or start[2:] != _MAGIC:
        # A file of pickle.dump, or no pickle at all.
        inspect(head, max_header_bytes)
        raise ValueError("the magic number of torch.save is missing")
    for _ in range(3):
        inspect(head, max_header_bytes)
    contents = inspect(head, max_header_bytes)
    keys = inspect(head, max_header_bytes).value
    storages: list[Storage] = [*contents.storages.values()]
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(s.key for s in storages):
        raise ValueError("the list of its storages does not fit its tensors")
    claimed = sum(8 + storage.total_bytes for storage in storages)
    if head.tell() + claimed > size:
        raise ValueError(f"its tensors claim {claimed} bytes, which the file does not have")
