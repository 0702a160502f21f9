"""Sample counts that an MP4 or MOV header claims, read before FFmpeg builds tables of that size."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

_CONTAINERS = frozenset((b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf"))
_MAX_BOXES = 500_000
_MAX_DEPTH = 8


def check_sample_counts(stream: BinaryIO, size: int, max_frames: int, what: str) -> None:
    """Raise ValueError if any table of the file claims more than `max_frames` samples (10 million at least: audio has many).

    stream: seekable, `size` bytes; left at its start. Files of other kinds pass. Reads headers only.
    """
    limit = max(max_frames, 10_000_000)
    stream.seek(0)
    if stream.read(8)[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip", b"moof", b"styp"):
        for count in _claims(stream, size):
            if count > limit:
                raise ValueError(f"{what}: the header claims {count} samples, the limit is {limit} frames; raise it with max_frames=")
    stream.seek(0)


def _claims(stream: BinaryIO, size: int) -> Iterator[int]:
    boxes = 0
    stack = [(0, size)]
    while stack:
        position, end = stack.pop()
        while position + 8 <= end:
            boxes += 1
            if boxes > _MAX_BOXES:
                yield boxes * 1000
                return
            stream.seek(position)
            head = stream.read(16)
            if len(head) < 8:
                return
            length, kind, header = struct.unpack(">I", head[:4])[0], head[4:8], 8
            if length == 1 and len(head) == 16:
                length, header = struct.unpack(">Q", head[8:])[0], 16
            elif length == 0:
                length = end - position
            if length < header:
                break
            inner = position + header
            stop = min(position + length, end)
            if kind in _CONTAINERS and len(stack) < _MAX_DEPTH:
                stack.append((position + length, end))
                position, end = inner, stop
                continue
            yield from _table(stream, kind, inner, stop)
            position += length


def _table(stream: BinaryIO, kind: bytes, start: int, stop: int) -> Iterator[int]:
    """Samples claimed by one box: stsz and stz2 (sample sizes), trun (a fragment)."""
    stream.seek(start)
    if kind in (b"stsz", b"stz2"):
        body = stream.read(12)
        if len(body) == 12 and not (kind == b"stsz" and 0 < struct.unpack(">I", body[4:8])[0] <= 8):  # PCM: a few bytes a sample
            yield struct.unpack(">I", body[8:])[0]
    elif kind == b"trun":
        body = stream.read(8)
        if len(body) == 8:
            yield struct.unpack(">I", body[4:])[0]
