"""Check the sample counts in an MP4 or MOV header before FFmpeg builds tables of that size."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from sam2_fast.io.limits import MAX_STREAMS

MAX_SOUND_SAMPLES = 10_000_000
"""Most samples of the compressed sound of a file (60 hours). Uncompressed sound has no table."""

_MAX_BOXES = 500_000
_FIRST_KINDS = frozenset(
    (b"ftyp", b"styp", b"moov", b"moof", b"mdat", b"free", b"wide", b"skip", b"pnot")
)


class _Box(NamedTuple):
    kind: bytes
    start: int  # of the body, in bytes from the start of the file
    stop: int


def check_sample_counts(
    stream: BinaryIO, size: int, max_frames: int, label: str, max_streams: int = MAX_STREAMS
) -> None:
    """Raise ValueError if tracks and fragments together claim more samples than their limit.

    Decoders build a table of all samples, a sample of which may take no byte of the file. Reads
    headers only. Files of other formats pass.
    stream: seekable, `size` bytes long; its position is 0 on return.
    label: the name of the video in the error message.
    """
    reader = _Reader(stream)
    stream.seek(0)
    if stream.read(8)[4:8] in _FIRST_KINDS:
        limits = {
            b"vide": max_frames,
            b"soun": max(MAX_SOUND_SAMPLES, max_frames),
            b"traf": max_frames + MAX_SOUND_SAMPLES,
        }
        counts = dict.fromkeys(limits, 0)
        tracks = 0
        for box in reader.inner_boxes(size):
            if box.kind == b"cmov":
                raise ValueError(
                    f"{label}: compressed MOV headers are not supported; rewrite the file with "
                    f"another tool"
                )
            tracks += box.kind == b"trak"
            if tracks > max_streams:
                raise ValueError(
                    f"{label}: the header has more than {max_streams} tracks; raise the limit with "
                    "max_streams="
                )
            for kind, count in reader.claims(box):
                counts[kind] += count
                if counts[kind] > limits[kind]:
                    raise ValueError(
                        f"{label}: the header claims {counts[kind]} samples, the limit is "
                        f"{limits[kind]}; raise it with max_frames="
                    )
    if reader.box_count > _MAX_BOXES:
        raise ValueError(f"{label}: the header has more than {_MAX_BOXES} boxes")
    stream.seek(0)


class _Reader:
    """Reads the boxes of an MP4 or MOV file."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.box_count = 0

    def boxes(self, position: int, end: int) -> Iterator[_Box]:
        """The boxes that follow each other in a range of bytes."""
        while position + 8 <= end and self.box_count <= _MAX_BOXES:
            self.box_count += 1
            head = self.read(position, 16)
            if len(head) < 8:
                return
            length = struct.unpack(">I", head[:4])[0]
            kind = head[4:8]
            header = 8  # bytes
            if length == 1 and len(head) == 16:
                length = struct.unpack(">Q", head[8:])[0]
                header = 16
            elif length == 0:
                length = end - position
            if length < header:
                return
            yield _Box(kind, position + header, min(position + length, end))
            position += length

    def descendants(self, box: _Box, *path: bytes) -> Iterator[_Box]:
        """The boxes at the end of a path of kinds below `box`."""
        for child in self.boxes(box.start, box.stop):
            if child.kind == path[0]:
                if len(path) == 1:
                    yield child
                else:
                    yield from self.descendants(child, *path[1:])

    def read(self, position: int, count: int) -> bytes:
        self._stream.seek(position)
        return self._stream.read(count)

    def inner_boxes(self, size: int) -> Iterator[_Box]:
        """The boxes of headers (`moov`) and fragments (`moof`)."""
        for outer in self.boxes(0, size):
            if outer.kind in (b"moov", b"moof"):
                yield from self.boxes(outer.start, outer.stop)

    def claims(self, box: _Box) -> Iterator[tuple[bytes, int]]:
        """(kind, claimed samples) of a track (`trak`) or of its part of a fragment (`traf`).

        The kind of a fragment is not known. Tracks of other kinds than sound count as video.
        """
        if box.kind == b"traf":
            for run in self.descendants(box, b"trun"):
                yield b"traf", self._number(run, 4)
        if box.kind != b"trak":
            return
        tables = (b"mdia", b"minf", b"stbl")
        sizes = [
            size for kind in (b"stsz", b"stz2") for size in self.descendants(box, *tables, kind)
        ]
        count = max((self._number(size, 8) for size in sizes), default=0)
        handlers = {
            self.read(handler.start + 8, 4) for handler in self.descendants(box, b"mdia", b"hdlr")
        }
        if handlers != {b"soun"}:
            yield b"vide", count
            return
        # Uncompressed sound: every sample lasts one tick, and all have the same size.
        uncompressed = all(
            self._number(times, 4) == self._number(times, 12) == 1
            for times in self.descendants(box, *tables, b"stts")
        ) and all(self._number(size, 4) for size in sizes)
        yield b"soun", 0 if uncompressed else count

    def _number(self, box: _Box, offset: int) -> int:
        body = self.read(box.start + offset, 4)
        return int(struct.unpack(">I", body)[0]) if len(body) == 4 else 0
