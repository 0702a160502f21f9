"""Sample counts that an MP4 or MOV header claims, read before FFmpeg builds tables of that size."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

MAX_SOUND_SAMPLES = 10_000_000
"""Of one compressed sound track (60 hours); uncompressed sound costs no table."""

_MAX_BOXES = 500_000
_FIRST = frozenset(
    (b"ftyp", b"styp", b"moov", b"moof", b"mdat", b"free", b"wide", b"skip", b"pnot")
)


class _Box(NamedTuple):
    kind: bytes
    start: int  # of the body, in bytes from the start of the file
    stop: int


def check_sample_counts(stream: BinaryIO, size: int, max_frames: int, what: str) -> None:
    """Raise ValueError if a track or fragment claims more samples than the limits; files of other
    kinds pass. Reads headers only.

    stream: seekable, `size` bytes; left at its start.
    """
    reader = _Reader(stream)
    stream.seek(0)
    if stream.read(8)[4:8] in _FIRST:
        for outer in reader.boxes(0, size):
            for inner in (
                reader.boxes(outer.start, outer.stop) if outer.kind in (b"moov", b"moof") else ()
            ):
                if inner.kind == b"cmov":
                    raise ValueError(
                        f"{what}: compressed MOV headers are not read; rewrite the file with "
                        f"another tool"
                    )
                count, limit = reader.claim(inner, max_frames)
                if count > limit:
                    raise ValueError(
                        f"{what}: the header claims {count} samples, the limit is {limit}; raise "
                        f"it with max_frames="
                    )
    if reader.seen > _MAX_BOXES:
        raise ValueError(f"{what}: the header has more than {_MAX_BOXES} parts")
    stream.seek(0)


class _Reader:
    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.seen = 0

    def boxes(self, position: int, end: int) -> Iterator[_Box]:
        """The boxes side by side in a range of bytes."""
        while position + 8 <= end and self.seen <= _MAX_BOXES:
            self.seen += 1
            head = self.read(position, 16)
            if len(head) < 8:
                return
            length, kind, header = struct.unpack(">I", head[:4])[0], head[4:8], 8
            if length == 1 and len(head) == 16:
                length, header = struct.unpack(">Q", head[8:])[0], 16
            elif length == 0:
                length = end - position
            if length < header:
                return
            yield _Box(kind, position + header, min(position + length, end))
            position += length

    def inside(self, box: _Box, *path: bytes) -> Iterator[_Box]:
        """The boxes at the end of a path of kinds."""
        for child in self.boxes(box.start, box.stop):
            if child.kind == path[0]:
                if len(path) == 1:
                    yield child
                else:
                    yield from self.inside(child, *path[1:])

    def read(self, position: int, count: int) -> bytes:
        self._stream.seek(position)
        return self._stream.read(count)

    def claim(self, box: _Box, max_frames: int) -> tuple[int, int]:
        """(samples claimed, limit) of one track (`trak`) or of one track's part of a fragment
        (`traf`).
        """
        if box.kind == b"traf":
            return max((self._number(run, 4) for run in self.inside(box, b"trun")), default=0), max(
                max_frames, MAX_SOUND_SAMPLES
            )
        if box.kind != b"trak":
            return 0, max_frames
        tables = (b"mdia", b"minf", b"stbl")
        sizes = [size for kind in (b"stsz", b"stz2") for size in self.inside(box, *tables, kind)]
        count = max((self._number(size, 8) for size in sizes), default=0)
        handlers = {
            self.read(handler.start + 8, 4) for handler in self.inside(box, b"mdia", b"hdlr")
        }
        if handlers != {b"soun"}:
            return count, max_frames
        plain = all(
            self._number(times, 4) == self._number(times, 12) == 1
            for times in self.inside(box, *tables, b"stts")
        )
        return (
            0 if plain and all(self._number(size, 4) for size in sizes) else count
        ), MAX_SOUND_SAMPLES

    def _number(self, box: _Box, offset: int) -> int:
        body = self.read(box.start + offset, 4)
        return int(struct.unpack(">I", body)[0]) if len(body) == 4 else 0
