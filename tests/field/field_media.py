"""Video files for the tests of inputs from the field: built with PyAV, changed by their bytes."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

SIZE = (48, 64)


def picture(index: int, height: int = 48, width: int = 64) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A smooth picture that is different for every index: [H, W, 3] uint8."""
    y, x = np.mgrid[:height, :width]
    red = (x * 3 + index * 11) % 256
    return np.stack([red, y * 4 % 256, np.full_like(x, index * 7 % 256)], axis=2).astype(np.uint8)


def write_video(
    path: Path,
    stamps: Sequence[int] = tuple(range(10)),
    *,
    time_base: Fraction = Fraction(1, 25),
    rate: Fraction = Fraction(25),
    codec: str = "libx264",
    size: tuple[int, int] = SIZE,
    kind: str | None = None,
    container_options: dict[str, str] | None = None,
    **options: str,
) -> Path:
    """Write a frame for each time stamp, in units of `time_base`; `rate` is that of the header."""
    with av.open(str(path), "w", format=kind, options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.options = options
        stream.codec_context.time_base = time_base
        for index, stamp in enumerate(stamps):
            frame = av.VideoFrame.from_ndarray(picture(index, *size), format="rgb24")
            frame.pts, frame.time_base = stamp, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def decoded(data: Path | bytes, stream: int = 0) -> list[tuple[int | None, np.ndarray]]:
    """(time stamp, pixels) of all frames of a video stream, by one thread, up to the last one."""
    frames = []
    source = io.BytesIO(data) if isinstance(data, bytes) else f"file:{data}"
    with av.open(source) as container:
        video = container.streams.video[stream]
        context = video.codec_context
        if context is None:
            return []
        context.thread_type = "NONE"
        try:
            for packet in container.demux(video):
                if packet.size:
                    frames += _decoded_packet(context, packet)
        except (av.error.InvalidDataError, av.error.EOFError):
            pass
        frames += _decoded_packet(context, None)
    return [(frame.pts, frame.to_ndarray(format="rgb24")) for frame in frames]


def _decoded_packet(context: Any, packet: Any) -> list[Any]:
    try:
        return context.decode(packet)
    except av.FFmpegError:
        return []


def with_matrix(data: bytes, matrix: Sequence[float], track: int = 0) -> bytes:
    """An MP4 file with another display matrix (a, b, c, d) of one of its tracks."""
    changed = bytearray(data)
    start = -1
    for _ in range(track + 1):
        start = changed.index(b"tkhd", start + 1)
    a, b, c, d = (round(value * 65536) for value in matrix)
    changed[start + 44 : start + 80] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    return bytes(changed)


def box(kind: bytes, *parts: bytes) -> bytes:
    """A box of an MP4 file."""
    body = b"".join(parts)
    return struct.pack(">I4s", 8 + len(body), kind) + body
