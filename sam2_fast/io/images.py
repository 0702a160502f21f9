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

from sam2_fast.io.limits import MAX_PIXELS, check_pixels

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM")
"""Formats that are read, whatever the file is called.

All others (EPS, FITS, PSD...) are refused: decoding some of them starts programs or has no bounds.
"""

_DECODE_ERRORS = (
    *(OSError, SyntaxError, ValueError, TypeError, IndexError, KeyError, EOFError),
    *(OverflowError, MemoryError, struct.error, Image.DecompressionBombError),
)
"""Errors that Pillow's decoders raise on damaged files."""


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
    return _to_uint8(as_rgb(image, max_pixels=max_pixels))


def as_rgb(image: Any, *, max_pixels: int = MAX_PIXELS) -> RGB8 | npt.NDArray[np.float32]:
    """Like `as_rgb_uint8`, but floating-point images stay float32 in [0, 1], without rounding."""
    if isinstance(image, (str, os.PathLike)):
        return load_image(image, max_pixels=max_pixels)
    if isinstance(image, Image.Image):
        return _from_pillow(image, max_pixels, "image")
    if isinstance(image, torch.Tensor):
        return _from_array(_channels_last(image.detach().cpu()).numpy(), "image")
    if isinstance(image, np.ndarray):
        return _from_array(image, "image")
    raise TypeError(
        f"image: expected a path, a Pillow image, a numpy array or a torch tensor, got "
        f"{type(image).__name__}"
    )


def load_image(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> RGB8:
    """Read an image file as [H, W, 3] uint8 RGB.

    The orientation tag (EXIF) is not applied, as in the official code. The size is checked before
    any pixel is decoded. Raises FileNotFoundError if there is no such file, and ValueError, which
    names the file, if it has none of `FORMATS`, is larger than `max_pixels`, damaged or truncated.
    """
    file = Path(path)
    with _open(file) as stream:
        return _to_uint8(_from_pillow(_identify(stream, file), max_pixels, f"image {file}"))


@contextmanager
def open_image(
    path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS
) -> Iterator[Image.Image]:
    """Open an image file as a Pillow image in its own mode: palette indices stay indices.

    Raises the same errors as `load_image`.
    """
    file = Path(path)
    with _open(file) as stream:
        image = _identify(stream, file)
        check_pixels(*image.size, max_pixels, f"image {file}")
        try:
            image.load()
        except _DECODE_ERRORS as error:
            raise ValueError(f"image {file}: cannot be decoded ({error})") from error
        yield image


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Read (height, width) in pixels from the header of an image file, without decoding it.

    Raises FileNotFoundError or ValueError, which name the file.
    """
    file = Path(path)
    with _open(file) as stream:
        width, height = _identify(stream, file).size
    return height, width


def _open(file: Path) -> BinaryIO:
    if not file.exists():
        raise FileNotFoundError(f"image {file}: no such file")
    try:
        return file.open("rb")
    except OSError as error:
        raise ValueError(f"image {file}: cannot be opened ({error.strerror})") from error


def _identify(stream: BinaryIO, file: Path) -> Image.Image:
    """Open a file with one of `FORMATS` only.

    Pillow's own global size limit is not applied, because ours is an argument of the callers.
    """
    Image.preinit()
    Image.init()
    prefix = stream.read(16)
    if not prefix:
        raise ValueError(f"image {file}: the file is empty")
    for name in FORMATS:
        factory, accepts = Image.OPEN.get(name, (None, None))
        if factory is None or (accepts is not None and not _matches(accepts(prefix))):
            continue
        stream.seek(0)
        try:
            image: Image.Image = factory(stream, os.fspath(file))
            return image
        except _DECODE_ERRORS:
            continue
    raise ValueError(f"image {file}: not a readable {', '.join(FORMATS)} file")


def _matches(answer: bool | str) -> bool:
    # A string is the reason why this Pillow build cannot read the format.
    return bool(answer) and not isinstance(answer, str)


def _from_pillow(image: Image.Image, max_pixels: int, label: str) -> RGB8 | npt.NDArray[np.float32]:
    check_pixels(*image.size, max_pixels, label)
    try:
        if image.mode == "F" or image.mode == "I" or image.mode.startswith("I;16"):
            deep = np.asarray(image)
            if image.mode == "I":
                if deep.min() < 0 or deep.max() > 65535:
                    raise ValueError("32-bit integer pixels outside 0..65535")
                deep = deep.astype(np.uint16)
            return _from_array(deep, label)
        return np.array(image if image.mode == "RGB" else image.convert("RGB"), dtype=np.uint8)
    except _DECODE_ERRORS as error:
        reason = str(error) or type(error).__name__
        raise ValueError(
            reason if reason.startswith(label) else f"{label}: cannot be decoded ({reason})"
        ) from error


def _to_uint8(pixels: RGB8 | npt.NDArray[np.float32]) -> RGB8:
    if pixels.dtype == np.uint8:
        return np.asarray(pixels, dtype=np.uint8)
    return np.asarray(np.rint(pixels * np.float32(255)), dtype=np.uint8)


def _channels_last(image: torch.Tensor) -> torch.Tensor:
    """Channels moved to the last axis. The first axis holds them if its size is 1, 3 or 4."""
    if image.dtype == torch.bfloat16:  # numpy has no bfloat16
        image = image.float()
    return image.permute(1, 2, 0) if image.ndim == 3 and image.shape[0] in (1, 3, 4) else image


def _from_array(array: npt.NDArray[Any], label: str) -> RGB8 | npt.NDArray[np.float32]:
    shape = [*array.shape]
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[2] not in (1, 3, 4):
        raise ValueError(
            f"{label}: expected a numpy array [H, W, 3], got {shape}; channels first? use "
            f".transpose(1, 2, 0)"
        )
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ValueError(
            f"{label}: expected [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], got {shape}"
        )
    if 0 in shape:
        raise ValueError(f"{label}: expected at least one pixel, got {shape}")
    channels = array[:, :, None] if array.ndim == 2 else array[:, :, :3]
    rgb = (
        np.broadcast_to(channels, (*channels.shape[:2], 3)) if channels.shape[2] == 1 else channels
    )
    if rgb.dtype == np.uint8:
        return np.ascontiguousarray(rgb)
    if rgb.dtype == np.uint16:
        return ((rgb.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if np.issubdtype(rgb.dtype, np.floating):
        return _unit_floats(rgb, label)
    raise ValueError(
        f"{label}: expected uint8, uint16 or floating point in [0, 1], got {array.dtype}; convert "
        f"with .astype(np.uint8)"
    )


def _unit_floats(rgb: npt.NDArray[Any], label: str) -> npt.NDArray[np.float32]:
    low, high = float(rgb.min()), float(rgb.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(f"{label}: floating-point pixels must be finite, got NaN or infinity")
    if low < 0 or high > 1:
        raise ValueError(
            f"{label}: floating-point pixels must lie in [0, 1], got [{low:g}, {high:g}]; divide "
            f"by 255 or pass uint8"
        )
    return np.ascontiguousarray(rgb, dtype=np.float32)
