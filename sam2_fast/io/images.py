"""Read one image as [H, W, 3] RGB from a path, a Pillow image, a numpy array or a torch tensor."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from sam2_fast.files.reasons import reason_of
from sam2_fast.io.limits import MAX_PIXELS, check_pixels, check_seekable
from sam2_fast.io.orientation import (
    is_applied,
    stored_orientation,
    swaps_sides,
    upright_pixels,
)
from sam2_fast.io.pixels import rgb_from_array
from sam2_fast.ops.core.mask_values import plain_tensor

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM")
"""Formats that are read, whatever the file is called.

All others (EPS, FITS, PSD...) are refused: decoding some of them starts programs or has no bounds.
"""

DECODE_ERRORS = (
    *(OSError, SyntaxError, ValueError, TypeError, IndexError, KeyError, EOFError),
    *(OverflowError, MemoryError, struct.error, Image.DecompressionBombError),
)
"""Errors that Pillow's decoders raise on damaged files."""

_STRIP_PIXELS = 2**20

RGB8 = npt.NDArray[np.uint8]


def as_rgb_uint8(image: Any, *, max_pixels: int = MAX_PIXELS) -> RGB8:
    """Any image as contiguous [H, W, 3] uint8 RGB.

    Floating-point pixels are rounded to the nearest of 256 levels.
    image: a path; a Pillow image; a numpy array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] (alpha is
        dropped); a torch tensor [3, H, W] (also with 1 or 4 channels), [H, W, 3] or [H, W]. Pixels
        are uint8, uint16 with a full scale of 0..65535, or floating point in [0, 1].
    max_pixels: limit for files and for Pillow images that are not loaded yet.
    Raises ValueError for an image that cannot be used, and TypeError for an object of another type.
    """
    return to_uint8(as_rgb(image, max_pixels=max_pixels))


def as_rgb(image: Any, *, max_pixels: int = MAX_PIXELS) -> RGB8 | npt.NDArray[np.float32]:
    """Like `as_rgb_uint8`, but floating-point images stay float32 in [0, 1], without rounding."""
    if isinstance(image, (str, os.PathLike)):
        return load_image(image, max_pixels=max_pixels)
    if isinstance(image, Image.Image):
        return from_pillow(image, max_pixels, "image")
    if isinstance(image, torch.Tensor):
        return rgb_from_array(_channels_last(plain_tensor(image, "image").cpu()).numpy(), "image")
    if isinstance(image, np.ndarray):
        return rgb_from_array(image, "image")
    raise TypeError(
        f"image: expected a path, a Pillow image, a numpy array or a torch tensor, got "
        f"{type(image).__name__}"
    )


def load_image(
    path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS, upright: bool = False
) -> RGB8:
    """Read an image file as [H, W, 3] uint8 RGB.

    upright: whether the orientation tag of cameras is applied (EXIF of JPEG, PNG and WebP), so that
        the image is as viewers show it. The official code does not apply it. The tag of TIFF files
        is always applied, by Pillow.
    The size is checked before any pixel is decoded. Raises FileNotFoundError if there is no such
    file, and ValueError, which names the file, if it has none of `FORMATS`, is larger than
    `max_pixels`, damaged or truncated.
    """
    file = Path(path)
    with _open(file) as stream:
        image = identify(stream, file)
        orientation = _to_apply(image, stream) if upright else 1
        pixels = to_uint8(from_pillow(image, max_pixels, f"image {file}"))
    return np.ascontiguousarray(upright_pixels(pixels, orientation))


def image_orientation(path: str | os.PathLike[str]) -> int:
    """The orientation tag of an image file, 1 to 8; 1 (unchanged) without a tag or if it is broken.

    EXIF of JPEG, PNG (eXIf) and WebP, and the tag of TIFF. Reads headers only. Raises
    FileNotFoundError or ValueError, which name the file, if it is no image.
    """
    file = Path(path)
    with _open(file) as stream:
        return stored_orientation(identify(stream, file), stream)


def depth_note(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> str | None:
    """One line about an image of 16 or 32 bits a pixel that uses its lowest bits only, or None.

    Such an image is nearly black, because its full scale is 65535: data of cameras and microscopes
    with 8 to 14 bits, for example. Decodes the image if it is one of these kinds.
    """
    with open_image(path, max_pixels=max_pixels) as image:
        if image.mode != "I" and not image.mode.startswith("I;16"):
            return None
        bits = int(np.asarray(image).max()).bit_length()
    if bits == 0 or bits > 14:
        return None
    return (
        f"image {path}: the 16-bit pixels use only the lowest {bits} bits, so the image is dark; "
        f"full scale is 65535: multiply the pixels by {2 ** (16 - bits)} for an image of full range"
    )


@contextmanager
def open_image(
    path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS
) -> Iterator[Image.Image]:
    """Open an image file as a Pillow image in its own mode: palette indices stay indices.

    Raises the same errors as `load_image`.
    """
    file = Path(path)
    with _open(file) as stream:
        image = identify(stream, file)
        check_pixels(*image.size, max_pixels, f"image {file}")
        try:
            image.load()
        except DECODE_ERRORS as error:
            raise ValueError(f"image {file}: cannot be decoded ({reason_of(error)})") from error
        yield image


def image_size(path: str | os.PathLike[str], *, upright: bool = False) -> tuple[int, int]:
    """Read (height, width) in pixels from the header of an image file, without decoding it.

    upright: whether the orientation tag is applied; see `load_image`.
    Raises FileNotFoundError or ValueError, which name the file.
    """
    file = Path(path)
    with _open(file) as stream:
        image = identify(stream, file)
        width, height = image.size
        swapped = upright and swaps_sides(_to_apply(image, stream))
    return (width, height) if swapped else (height, width)


def _to_apply(image: Image.Image, stream: BinaryIO) -> int:
    """The orientation that is still to be applied after Pillow has decoded the image."""
    return 1 if is_applied(image) else stored_orientation(image, stream)


def _open(file: Path) -> BinaryIO:
    if not file.exists():
        raise FileNotFoundError(f"image {file}: no such file")
    check_seekable(file, f"image {file}")
    try:
        return file.open("rb")
    except OSError as error:
        raise ValueError(f"image {file}: cannot be opened ({error.strerror})") from error


def identify(stream: BinaryIO, file: Path | str) -> Image.Image:
    """Open a file with one of `FORMATS` only. Nothing but its header is read.

    file: its path, or its name in error messages.
    Pillow's own global size limit is not applied, because ours is an argument of the callers.
    """
    label = f"image {file}" if isinstance(file, Path) else file
    Image.preinit()
    Image.init()
    stream.seek(0)
    prefix = stream.read(16)
    if not prefix:
        raise ValueError(f"{label}: the file is empty")
    for name in FORMATS:
        factory, accepts = Image.OPEN.get(name, (None, None))
        if factory is None or (accepts is not None and not _matches(accepts(prefix))):
            continue
        stream.seek(0)
        try:
            image: Image.Image = factory(stream, os.fspath(file))
            return image
        except DECODE_ERRORS:
            continue
    raise ValueError(f"{label}: not a readable {', '.join(FORMATS)} file")


def _matches(answer: bool | str) -> bool:
    # A string is the reason why this Pillow build cannot read the format.
    return bool(answer) and not isinstance(answer, str)


def from_pillow(image: Image.Image, max_pixels: int, label: str) -> RGB8 | npt.NDArray[np.float32]:
    """The pixels [H, W, 3] of a Pillow image of any mode.

    label: the name of the image in error messages.
    """
    check_pixels(*image.size, max_pixels, label)
    try:
        if image.mode == "F" or image.mode == "I" or image.mode.startswith("I;16"):
            deep = np.asarray(image)
            if image.mode == "I":
                low, high = int(deep.min()), int(deep.max())
                if low < 0 or high > 65535:
                    raise ValueError(
                        f"32-bit integer pixels in [{low}, {high}], expected 0 to 65535; scale them"
                    )
                deep = deep.astype(np.uint16)
            return rgb_from_array(deep, label)
        return _rgb_in_strips(image)
    except DECODE_ERRORS as error:
        reason = reason_of(error)
        raise ValueError(
            reason if reason.startswith(label) else f"{label}: cannot be decoded ({reason})"
        ) from error


def _rgb_in_strips(image: Image.Image) -> RGB8:
    """The colours [H, W, 3] of a Pillow image, strip by strip, because Pillow copies twice."""
    image.load()
    width, height = image.size
    pixels = np.empty((height, width, 3), dtype=np.uint8)
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        whole = rows >= height
        strip = image if whole else image.crop((0, top, width, min(top + rows, height)))
        pixels[top : top + rows] = np.asarray(strip.convert("RGB"))
    return pixels


def to_uint8(pixels: RGB8 | npt.NDArray[np.float32]) -> RGB8:
    """Floating-point pixels in [0, 1] rounded to 256 levels; bytes unchanged."""
    if pixels.dtype == np.uint8:
        return np.asarray(pixels, dtype=np.uint8)
    return np.asarray(np.rint(pixels * np.float32(255)), dtype=np.uint8)


def _channels_last(image: torch.Tensor) -> torch.Tensor:
    """Channels moved to the last axis. The first axis holds them if its size is 1, 3 or 4."""
    if image.dtype == torch.bfloat16:  # numpy has no bfloat16
        image = image.float()
    return image.permute(1, 2, 0) if image.ndim == 3 and image.shape[0] in (1, 3, 4) else image
