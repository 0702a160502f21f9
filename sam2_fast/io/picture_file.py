"""A picture file as a video: animated GIF, PNG and WebP, TIFF with several pages, or one still."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from sam2_fast.files.reasons import reason_of
from sam2_fast.io.animation import frame_durations
from sam2_fast.io.frames import Frame, FrameSource
from sam2_fast.io.images import DECODE_ERRORS, from_pillow, identify, to_uint8
from sam2_fast.io.limits import MAX_FRAMES, MAX_PIXELS, check_count, check_frames, check_pixels
from sam2_fast.io.orientation import is_applied, stored_orientation, swaps_sides, upright_pixels

_REDUCED = 1  # bit of TIFF's NewSubfileType: a smaller copy of another page
_NEW_SUBFILE_TYPE = 254

SIGNATURES = (
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"GIF87a",
    b"GIF89a",
    b"II*\0",
    b"MM\0*",
    b"II+\0",
    b"MM\0+",
)


def is_picture(source: Path | bytes) -> bool:
    """Whether the content is a picture, and not a video, whatever the file is called."""
    with _reader(source) as stream:
        head = stream.read(32)
        if head.startswith(b"\xff\xd8\xff"):
            suffix = source.suffix.lower() if isinstance(source, Path) else ""
            return suffix in (".jpg", ".jpeg", ".jpe", ".jfif") or not _is_motion_jpeg(stream)
        if head.startswith(SIGNATURES) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
            return True
        if not (head.startswith(b"BM") or (head[:1] == b"P" and head[1:2] in b"123456")):
            return False
        try:
            identify(stream, Path("picture"))
        except ValueError:
            return False
        return True


class PictureFile(FrameSource):
    """The frames of an animation or the pages of a TIFF file, or one still picture.

    Frames are decoded when they are read, by Pillow, which composes frames that are drawn over
    earlier ones. Reading backwards decodes from the start once per window.
    `frame_time` and `fps` follow from the durations of an animation's frames; pages and stills have
    no clock. Frames at the end of an animation that is cut off are not listed. The first page of a
    TIFF file sets the size; pages that are marked as smaller copies of others are no frames.
    """

    reads_ahead = True

    def __init__(
        self,
        source: Path | bytes,
        *,
        max_pixels: int = MAX_PIXELS,
        max_frames: int = MAX_FRAMES,
        upright: bool = False,
    ) -> None:
        self._source = source
        self._label = (
            f"image {source}" if isinstance(source, Path) else f"image of {len(source)} bytes"
        )
        self._max_pixels = max_pixels
        self._start()
        with self._errors(), _reader(source) as stream:
            image = self._identified(stream)
            check_pixels(*image.size, max_pixels, self._label)
            stored = stored_orientation(image, stream) if upright else 1
            self._orientation = 1 if is_applied(image) else stored
            durations = self._list_frames(image, stream, max_frames)
            if durations:
                check_frames(*image.size, len(durations), max_pixels, self._label)
        width, height = image.size
        if swaps_sides(self._orientation):
            width, height = height, width
        self._seconds = [0.0, *itertools.accumulate(durations[:-1])] if durations else None
        fps = len(durations) / sum(durations) if durations else None
        if fps is not None and len(set(durations)) == 1:
            fps = 1 / durations[0]
        super().__init__(
            self._label.replace("image", "video", 1), len(self._pages), height, width, fps
        )
        self._insert(0, self._read(0))

    def _list_frames(self, image: Image.Image, stream: BinaryIO, max_frames: int) -> list[float]:
        """Set `_pages`, Pillow's numbers of the frames; returns their seconds, if they have any."""
        durations: list[float] = []
        if image.format in ("GIF", "PNG", "WEBP"):
            for seconds in frame_durations(stream, image.format):
                durations.append(seconds)
                check_count(len(durations), max_frames, self._label)
        pages = range(max(1, len(durations)))
        if image.format == "PNG" and durations and getattr(image, "default_image", False):
            pages = range(1, len(durations) + 1)  # page 0 is not part of the animation
        self._pages = list(pages) if image.format != "TIFF" else self._tiff_pages(image, max_frames)
        return durations if len(durations) > 1 else []

    def _tiff_pages(self, image: Image.Image, max_frames: int) -> list[int]:
        pages = [0]
        for page in itertools.count(1):
            try:
                image.seek(page)
            except EOFError:
                break
            kind = getattr(image, "tag_v2", {}).get(_NEW_SUBFILE_TYPE, 0)
            if not (isinstance(kind, int) and kind & _REDUCED):
                pages.append(page)
                check_count(len(pages), max_frames, self._label)
        image.seek(0)
        return pages

    def frame_time(self, index: int) -> float | None:
        """Seconds from the start of the animation; None for pages of TIFF files and for stills."""
        return None if self._seconds is None else self._seconds[index]

    def _start(self) -> None:
        self._stream: BinaryIO | None = None
        self._image: Image.Image | None = None
        self._next = 0

    def _read(self, index: int) -> Frame:
        """Decode frame `index`, and put the frames before it into the window on the way back."""
        first = index
        if self._image is not None and index < self._next and not self._is_random_access():
            self._rewind()
            first = max(0, index - self.window + 1)
        for number in range(first, index):
            self._insert(number, self._decode(number))
        frame = self._decode(index)
        self._next = index + 1
        return frame

    def _is_random_access(self) -> bool:
        return self._image is not None and self._image.format == "TIFF"

    def _decode(self, index: int) -> Frame:
        with self._errors(f"frame {index}: "):
            if self._image is None:
                source = self._source
                self._stream = source.open("rb") if isinstance(source, Path) else io.BytesIO(source)
                self._image = self._identified(self._stream)
            self._image.seek(self._pages[index])
            label = f"{self._label}: frame {index}"
            pixels = to_uint8(from_pillow(self._image, self._max_pixels, label))
        return np.ascontiguousarray(upright_pixels(pixels, self._orientation))

    def _identified(self, stream: BinaryIO) -> Image.Image:
        return identify(stream, self._source if isinstance(self._source, Path) else self._label)

    def _rewind(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._start()

    @contextmanager
    def _errors(self, position: str = "") -> Iterator[None]:
        """Pillow's errors as one ValueError that names the file and the frame."""
        try:
            yield
        except DECODE_ERRORS as error:
            self._rewind()
            reason = reason_of(error)
            if reason.startswith(self._label) or isinstance(error, FileNotFoundError):
                raise
            raise ValueError(f"{self._label}: {position}cannot be decoded ({reason})") from error

    def close(self) -> None:
        super().close()
        with self._lock:
            self._rewind()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in super().__getstate__().items() if k not in ("_stream", "_image")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._start()


def _reader(source: Path | bytes) -> BinaryIO:
    return io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")


def _is_motion_jpeg(stream: BinaryIO) -> bool:
    """Whether several JPEG pictures follow each other, and are not parts of one photograph.

    Photographs with an MPF segment hold previews or further views after the first picture.
    """
    stream.seek(0)
    data = stream.read(2**26)
    scan = data.find(b"\xff\xda")
    return b"MPF\0" not in data[: max(scan, 0)] and data.find(b"\xff\xd9\xff\xd8\xff", scan) > 0
