"""Choose the video stream of a container, and convert its frames to RGB as players show them."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from sam2_fast.io.frames import Frame
from sam2_fast.io.orientation import matrix_orientation, upright_pixels

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

MAX_THREADS = 4
"""Most decoder threads of one video: more do not help at common sizes, and cost memory each."""

_ATTACHED_PICTURE = 0x400
_TIMED_THUMBNAILS = 0x800
_DEFAULT = 0x1


def choose_stream(container: Any, name: str) -> Any:
    """The stream that FFmpeg would choose: a default one before others, then the largest picture.

    Cover pictures and thumbnails are no video. A stream without a decoder is not chosen.
    Raises ValueError, which names the video, if there is none.
    """
    streams = [
        stream
        for stream in container.streams.video
        if not int(stream.disposition) & (_ATTACHED_PICTURE | _TIMED_THUMBNAILS)
    ]
    if not streams:
        covers = len(container.streams.video)
        reason = "; it has a cover picture only" if covers else ""
        raise ValueError(f"{name}: no video stream in the file{reason}")
    decodable = [stream for stream in streams if stream.codec_context is not None]
    if not decodable:
        raise ValueError(f"{name}: no decoder for its video stream")
    return max(decodable, key=_rank)


def _rank(stream: Any) -> tuple[bool, int, int]:
    context = stream.codec_context
    is_default = bool(int(stream.disposition) & _DEFAULT)
    return is_default, context.width * context.height, -stream.index


def set_threads(stream: Any, is_damaged: bool) -> None:
    """Bound the number of decoder threads: one for a damaged file.

    With several threads, frames that the decoder holds are lost when an error is reported, and
    damaged frames are repaired in another way.
    """
    stream.thread_type = "AUTO"
    stream.thread_count = 1 if is_damaged else min(MAX_THREADS, os.cpu_count() or 1)


def to_rgb(frame: VideoFrame, name: str) -> Frame:
    """The frame as [H, W, 3] uint8, rotated and mirrored as its display matrix says.

    Raises ValueError, which names the video, for a matrix that is no multiple of 90 degrees.
    """
    orientation = _orientation(frame, name)
    rgb = np.asarray(frame.to_ndarray(format="rgb24"), dtype=np.uint8)
    return np.ascontiguousarray(upright_pixels(rgb, orientation)) if orientation > 1 else rgb


def _orientation(frame: VideoFrame, name: str) -> int:
    side_data: Any = frame.side_data
    for data in side_data:
        if data.type.name == "DISPLAYMATRIX" and data.buffer_size >= 36:
            matrix = struct.unpack_from("=9i", bytes(data))
            orientation = matrix_orientation(matrix)
            if orientation is None:
                a, b, _, c, d = (value / 65536 for value in matrix[:5])
                raise ValueError(
                    f"{name}: its display matrix ({a:g} {b:g}; {c:g} {d:g}) is not a rotation by a "
                    f"multiple of 90 degrees, with or without mirroring; re-encode the video "
                    f"upright, or remove the matrix from its header"
                )
            return orientation
    return 1
