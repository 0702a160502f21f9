"""Videos that consist of image files: a folder, or a list of paths."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from sam2_fast.io.frame_order import Key, ambiguous_numbers, frame_key
from sam2_fast.io.frames import Frame, FrameSource
from sam2_fast.io.images import image_size, load_image
from sam2_fast.io.limits import MAX_FRAMES, MAX_PIXELS, check_count, check_pixels

FRAME_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
"""Suffixes of the frames of a folder, in upper or lower case."""


class FrameFiles(FrameSource):
    """Image files, one per frame. A file with several pictures is read as its first one."""

    reads_ahead = True

    def __init__(
        self, name: str, files: Sequence[Path], *, max_pixels: int, upright: bool = False
    ) -> None:
        self._files = files
        self._max_pixels = max_pixels
        self._upright = upright
        height, width = image_size(files[0], upright=upright)
        check_pixels(width, height, max_pixels, f"image {files[0]}")
        super().__init__(name, len(files), height, width)
        distinct = len({file.stem.casefold() for file in files}) == len(files)
        self._names = [file.stem for file in files] if distinct else None

    def _read(self, index: int) -> Frame:
        file = self._files[index]
        frame = load_image(file, max_pixels=self._max_pixels, upright=self._upright)
        height, width = frame.shape[:2]
        if (height, width) != (self.height, self.width):
            self._raise_size(index, (height, width), (self.height, self.width))
        return frame

    def frame_name(self, index: int) -> str:
        """The name of the file without its suffix, or the position if names are repeated."""
        return super().frame_name(index) if self._names is None else self._names[index]

    def check_sizes(self, frames: range | None = None) -> None:
        """Read the headers of the files; see `FrameSource.check_sizes`.

        If the first file is the odd one out, the error names that one. A file without a readable
        header raises when its frame is read, so that the frames before it can be used.
        """
        numbers = range(len(self._files)) if frames is None else frames
        sizes: dict[int, tuple[int, int]] = {}
        for number in numbers:
            with suppress(ValueError):
                sizes[number] = self._size(number)
        if len(set(sizes.values())) <= 1:
            return
        (height, width), _ = Counter(sizes.values()).most_common(1)[0]
        odd = next(number for number, size in sizes.items() if size != (height, width))
        self._raise_size(odd, sizes[odd], (height, width))

    def _size(self, index: int) -> tuple[int, int]:
        return image_size(self._files[index], upright=self._upright)

    def _raise_size(self, index: int, size: tuple[int, int], expected: tuple[int, int]) -> None:
        file = self._files[index].name
        raise ValueError(
            f"{self.name}: frame {index} is {size[1]} x {size[0]} pixels, the video is "
            f"{expected[1]} x {expected[0]}; all frames must have the same size; remove or rename "
            f"{file} if it is not a frame"
        )


class FrameFolder(FrameFiles):
    """A directory of image files, one per frame, in the order of `sam2_fast.io.frame_order`.

    Examples of names: `7.jpg`, `00007.jpg`, `frame_7.png`, `1700000000.25.jpg`.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_pixels: int = MAX_PIXELS,
        max_frames: int = MAX_FRAMES,
        upright: bool = False,
    ) -> None:
        files = frame_files(path, max_frames)
        super().__init__(f"frame folder {path}", files, max_pixels=max_pixels, upright=upright)


def frame_files(folder: Path, max_frames: int = MAX_FRAMES) -> list[Path]:
    """Image files of a folder in frame order.

    Hidden files (`._0.jpg`) and files of other kinds are skipped. Raises ValueError if there are
    none, if two files are the same frame, and if the order is ambiguous.
    """
    names: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if (
                not entry.name.startswith(".")
                and os.path.splitext(entry.name)[1].lower() in FRAME_SUFFIXES
            ):
                names.append(entry.name)
                check_count(len(names), max_frames, f"frame folder {folder}")
    if not names:
        raise ValueError(
            f"frame folder {folder}: no images found; expected files such as 00000.jpg "
            f"({', '.join(FRAME_SUFFIXES)})"
        )
    stems = {name: os.path.splitext(name)[0] for name in names}
    pair = ambiguous_numbers(stems.values())
    if pair is not None:
        raise ValueError(
            f"frame folder {folder}: the order of {pair[0]} and {pair[1]} is ambiguous: the digits "
            f"after the point may be decimals or a counter; rename the files so that all have the "
            f"same number of digits after the point"
        )
    seen: dict[Key, str] = {}
    for name in sorted(names):
        key = frame_key(stems[name])
        if key in seen:
            raise ValueError(f"frame folder {folder}: {seen[key]} and {name} are the same frame")
        seen[key] = name
    return [folder / seen[key] for key in sorted(seen)]
