"""Orientation of pictures: tags of cameras (EXIF) and display matrices of videos.

An orientation is a number from 1 to 8, as in EXIF: how the stored pixels are mirrored and rotated
to be shown upright. 1 means unchanged.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import BinaryIO, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

_TAG = 0x0112
_MAX_CHUNKS = 100_000
Array = TypeVar("Array", bound=npt.NDArray[np.generic])


def upright_pixels(pixels: Array, orientation: int) -> Array:
    """Stored pixels [H, W, ...] as they are shown; a view, with height and width exchanged for 5-8.

    orientation: 1 to 8; any other number counts as 1.
    """
    if orientation in (5, 6, 7, 8):
        pixels = np.swapaxes(pixels, 0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]  # type: ignore[assignment]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]  # type: ignore[assignment]
    return pixels


def swaps_sides(orientation: int) -> bool:
    """Whether an upright picture has the stored height as its width."""
    return orientation in (5, 6, 7, 8)


def stored_orientation(image: Image.Image, stream: BinaryIO) -> int:
    """The orientation tag of an image file, 1 if it has none or a broken one.

    image: opened from `stream`, not decoded yet. Only headers are read.
    """
    if image.format == "TIFF":
        value = getattr(image, "tag_v2", {}).get(_TAG, 1)
        return value if isinstance(value, int) and 1 <= value <= 8 else 1
    if image.format == "PNG":
        return exif_orientation(_png_exif(stream))
    exif = image.info.get("exif")
    return exif_orientation(exif if isinstance(exif, bytes) else b"")


def is_applied(image: Image.Image) -> bool:
    """Whether Pillow shows the image upright by itself: it does so for TIFF."""
    return image.format == "TIFF"


def exif_orientation(exif: bytes) -> int:
    """The orientation in a block of EXIF data, 1 if there is none or the block is broken."""
    data = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(data[:4])
    if order is None or len(data) < 8:
        return 1
    position = struct.unpack_from(f"{order}I", data, 4)[0]
    if position + 2 > len(data):
        return 1
    for entry in range(struct.unpack_from(f"{order}H", data, position)[0]):
        start = position + 2 + 12 * entry
        if start + 12 > len(data):
            return 1
        tag, kind, count = struct.unpack_from(f"{order}HHI", data, start)
        if tag == _TAG:
            sizes = {1: "B", 3: "H", 4: "I"}
            if kind not in sizes or count != 1:
                return 1
            value = int(struct.unpack_from(f"{order}{sizes[kind]}", data, start + 8)[0])
            return value if 1 <= value <= 8 else 1
    return 1


def _png_exif(stream: BinaryIO) -> bytes:
    """The body of the eXIf chunk of a PNG file, before or after the pixels; empty without one."""
    position = 8
    for _ in range(_MAX_CHUNKS):
        stream.seek(position)
        head = stream.read(8)
        if len(head) < 8 or head[4:] == b"IEND":
            return b""
        length = struct.unpack(">I", head[:4])[0]
        if head[4:] == b"eXIf":
            return stream.read(min(length, 2**16))
        position += 12 + length
    return b""


def matrix_orientation(matrix: Sequence[int]) -> int | None:
    """The orientation of a display matrix; None if it is no multiple of 90 degrees, or a shear.

    matrix: nine integers (a, b, u, c, d, v, x, y, w) as in MP4: the stored pixel (x, y) is shown at
    (a x + c y, b x + d y). Scaling is ignored, and a matrix of zeros counts as unchanged, as in
    FFmpeg.
    """
    a, b, _, c, d = matrix[:5]
    if not any((a, b, c, d)):
        return 1
    tolerance = 0.0175  # one degree, as in FFmpeg
    if max(abs(b), abs(c)) <= tolerance * min(abs(a), abs(d)):
        return {(False, False): 1, (True, False): 2, (True, True): 3, (False, True): 4}[
            (a < 0, d < 0)
        ]
    if max(abs(a), abs(d)) <= tolerance * min(abs(b), abs(c)):
        return {(False, False): 5, (True, False): 6, (True, True): 7, (False, True): 8}[
            (c < 0, b < 0)
        ]
    return None
