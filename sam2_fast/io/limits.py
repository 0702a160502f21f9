"""Limits on the size of a file, checked before it is decoded.

Every reader takes the limit as an argument, so that a caller can raise it.
"""

from __future__ import annotations

import stat
from pathlib import Path

MAX_PIXELS = 2**27
"""Most pixels of one image or frame that is read from a file (134 million: 402 MB as RGB).

Decoding needs up to 7 bytes a pixel: 4 of Pillow and 3 of the result.
"""

MAX_FRAMES = 1_000_000
"""Most frames of one video (9 hours at 30 frames per second)."""

FRAMES_AT_ONCE = 4
"""Frames of a video or an animation that are in memory at once, at least, and so count together."""

MAX_STREAMS = 100
"""Most streams (tracks) of a video file."""

MAX_TOTAL_PIXELS = 2**32
"""Most pixels of all masks of a JSON file, or of one frame or image of it (4.3 gigapixels)."""

MAX_JSON_BYTES = 2**26
"""Largest JSON, CSV, YAML or text file in bytes (64 MiB)."""

BYTES_PER_VALUE = 32
"""A file may have one value (list, object, item) for each of this many bytes of its limit."""


def check_pixels(width: int, height: int, max_pixels: int, label: str) -> None:
    """Raise ValueError unless a picture has between 1 and `max_pixels` pixels.

    label: the name of the picture in the error message.
    """
    if width <= 0 or height <= 0:
        raise ValueError(f"{label}: expected at least one pixel, got {width} x {height}")
    if width * height > max_pixels:
        raise ValueError(
            f"{label}: {width} x {height} is {width * height} pixels, the limit is {max_pixels}; "
            f"raise it with max_pixels="
        )


def check_frames(width: int, height: int, count: int, max_pixels: int, label: str) -> None:
    """Raise ValueError if the frames of a video that are in memory at once are too large.

    count: the number of frames. label: the name of the video in the error message.
    """
    check_pixels(width, height, max_pixels, label)
    at_once = min(count, FRAMES_AT_ONCE)
    if at_once * width * height > max_pixels:
        raise ValueError(
            f"{label}: {at_once} frames of {width} x {height}, which are in memory at once, are "
            f"{at_once * width * height} pixels, the limit is {max_pixels}; raise it with "
            f"max_pixels="
        )


def check_count(count: int, max_frames: int, label: str) -> None:
    """Raise ValueError if a video has more than `max_frames` frames.

    label: the name of the video in the error message.
    """
    if count > max_frames:
        raise ValueError(
            f"{label}: more than {max_frames} frames; raise the limit with max_frames="
        )


def check_total(pixels: int, max_total_pixels: int, label: str) -> None:
    """Raise ValueError if the masks of a file have more than `max_total_pixels` pixels together.

    label: the name of the file in the error message.
    """
    if pixels > max_total_pixels:
        raise ValueError(
            f"{label}: the masks have {pixels} pixels together, the limit is {max_total_pixels}; "
            f"raise it with max_total_pixels="
        )


def check_regular(path: Path, label: str) -> None:
    """Raise ValueError unless a path is a regular file; opening a pipe may wait for ever.

    label: the name of the input in the error message. Raises FileNotFoundError if there is none.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError(f"{label}: expected a file, got a folder, a pipe or a device")


def check_seekable(path: Path, label: str) -> None:
    """Raise ValueError if a path is a pipe, a socket or a device.

    label: the name of the input in the error message.
    """
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise ValueError(
            f"{label}: not a regular file; pipes and devices cannot be read in any order: write "
            f"the data to a file, or pass its bytes"
        )
