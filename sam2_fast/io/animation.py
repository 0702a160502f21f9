"""How many frames an animated picture has and how long each lasts, from the headers of the file.

Nothing is decoded, so that a file of very many frames is refused at once and the times of all
frames are known when the file is opened.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

SHORTEST = 0.01
"""Frames of at most this many seconds are shown for `DEFAULT` seconds, as in browsers."""
DEFAULT = 0.1

_MAX_BLOCKS = 20_000_000


def frame_durations(stream: BinaryIO, kind: str) -> Iterator[float]:
    """Seconds of every complete frame of an animation in order of time.

    kind: "GIF", "PNG" or "WEBP". A PNG or WebP file that is not animated has no such frames.
    A file that is cut off ends after the last complete frame.
    """
    parsers = {"GIF": _gif_durations, "PNG": _apng_durations, "WEBP": _webp_durations}
    for seconds in parsers[kind](stream):
        yield seconds if seconds > SHORTEST else DEFAULT


def _gif_durations(stream: BinaryIO) -> Iterator[float]:
    stream.seek(0)
    head = stream.read(13)
    if len(head) < 13:
        return
    _skip_colors(stream, head[10])
    delay = 0
    for _ in range(_MAX_BLOCKS):
        kind = stream.read(1)
        if kind == b"!":
            label = stream.read(1)
            first = _sub_blocks(stream)
            if first is None:
                return
            if label == b"\xf9" and len(first) >= 4:
                delay = first[1] + 256 * first[2]
        elif kind == b",":
            descriptor = stream.read(9)
            if len(descriptor) < 9:
                return
            _skip_colors(stream, descriptor[8])
            stream.read(1)
            if _sub_blocks(stream) is None:
                return
            yield delay / 100
            delay = 0
        elif kind in (b"", b";"):
            return


def _skip_colors(stream: BinaryIO, flags: int) -> None:
    if flags & 0x80:
        stream.seek(3 << ((flags & 7) + 1), 1)


def _sub_blocks(stream: BinaryIO) -> bytes | None:
    """The first of a sequence of blocks, which is skipped; None if the file ends before it."""
    first: bytes | None = None
    while True:
        size = stream.read(1)
        if not size:
            return None
        if size == b"\0":
            return first or b""
        block = stream.read(size[0])
        if len(block) < size[0]:
            return None
        first = block if first is None else first


def _apng_durations(stream: BinaryIO) -> Iterator[float]:
    """The duration of a frame is in front of its pixels, so it is complete when the next starts."""
    position = 8
    animated = False
    current: float | None = None
    for _ in range(_MAX_BLOCKS):
        stream.seek(position)
        head = stream.read(8)
        if len(head) < 8:
            return
        length = struct.unpack(">I", head[:4])[0]
        kind = head[4:]
        if kind == b"acTL":
            animated = True
        elif kind == b"fcTL" and animated:
            if current is not None:
                yield current
            body = stream.read(26)
            if len(body) < 26:
                return
            numerator, denominator = struct.unpack_from(">HH", body, 20)
            current = numerator / (denominator or 100)
        elif kind == b"IEND":
            if current is not None:
                yield current
            return
        position += 12 + length


def _webp_durations(stream: BinaryIO) -> Iterator[float]:
    stream.seek(0, 2)
    size = stream.tell()
    position = 12
    for _ in range(_MAX_BLOCKS):
        stream.seek(position)
        head = stream.read(8)
        if len(head) < 8:
            return
        length = struct.unpack("<I", head[4:])[0]
        if position + 8 + length > size:
            return
        if head[:4] == b"ANMF":
            body = stream.read(16)
            if len(body) == 16:
                yield int.from_bytes(body[12:15], "little") / 1000
        position += 8 + length + length % 2
