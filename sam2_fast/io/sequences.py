"""Videos that consist of pictures: a list, an array, a stream or a camera."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from os import PathLike
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sam2_fast.io.frame_folder import FRAME_SUFFIXES, FrameFolder, frame_files
from sam2_fast.io.frames import Frame, FrameGoneError, FrameSource
from sam2_fast.io.images import as_rgb_uint8, load_image
from sam2_fast.io.limits import MAX_FRAMES, MAX_PIXELS, check_count

__all__ = [
    "FRAME_SUFFIXES",
    "Camera",
    "FrameArray",
    "FrameFolder",
    "FrameList",
    "FrameStream",
    "frame_files",
]


class FrameList(FrameSource):
    """A list of arrays, Pillow images, tensors or paths, each converted when it is read."""

    def __init__(
        self,
        frames: Sequence[Any],
        *,
        max_pixels: int = MAX_PIXELS,
        max_frames: int = MAX_FRAMES,
        upright: bool = False,
    ) -> None:
        if not frames:
            raise ValueError("video: expected at least one frame, got an empty list")
        check_count(len(frames), max_frames, "video")
        self._frames = frames
        self._max_pixels = max_pixels
        self._upright = upright
        height, width = self._read(0).shape[:2]
        super().__init__(f"list of {len(frames)} frames", len(frames), height, width)

    def _read(self, index: int) -> Frame:
        return _convert(self._frames[index], index, self._max_pixels, self._upright)


class FrameArray(FrameSource):
    """One numpy array [T, H, W, 3], or one torch tensor [T, 3, H, W] or [T, H, W, 3].

    uint8, or floating point in [0, 1].
    """

    def __init__(self, frames: npt.NDArray[Any] | torch.Tensor) -> None:
        shape = [*frames.shape]
        channels_first = isinstance(frames, torch.Tensor) and frames.ndim == 4 and shape[1] == 3
        if len(shape) != 4 or not (channels_first or shape[3] == 3):
            layouts = (
                "[T, 3, H, W] or [T, H, W, 3]"
                if isinstance(frames, torch.Tensor)
                else "[T, H, W, 3]"
            )
            raise ValueError(f"video: expected {layouts}, got {shape}")
        if 0 in shape:
            raise ValueError(f"video: expected at least one frame and one pixel, got {shape}")
        self._frames = frames
        height, width = (shape[2], shape[3]) if channels_first else (shape[1], shape[2])
        super().__init__(f"array {shape}", shape[0], height, width)
        self._read(0)

    def _read(self, index: int) -> Frame:
        return _convert(self._frames[index], index, MAX_PIXELS)


class FrameStream(FrameSource):
    """Frames from an iterator of unknown length, pulled when they are first read.

    Earlier frames can be read again as long as they are in the window. `num_frames` is None until
    the iterator ends. An exception of the iterator is passed on, and no frame is lost.
    """

    sequential = True

    def __init__(
        self,
        frames: Iterable[Any],
        *,
        name: str = "stream",
        max_pixels: int = MAX_PIXELS,
        max_frames: int = MAX_FRAMES,
    ) -> None:
        self._frames = iter(frames)
        self._max_pixels = max_pixels
        self._max_frames = max_frames
        self._next = 0
        end = object()
        first = next(self._frames, end)
        if first is end:
            raise ValueError(f"{name}: expected at least one frame, the iterator was empty")
        frame = _convert(first, 0, max_pixels)
        super().__init__(name, None, *frame.shape[:2])
        self._insert(0, frame)
        self._next = 1

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError(
            f"{self.name}: cannot be pickled, because its frames can be read only once; pass a "
            "list, a folder or a video file instead"
        )

    def _read(self, index: int) -> Frame:
        if index < self._next:
            raise FrameGoneError(
                f"{self.name}: frame {index} is gone; a stream keeps the last {self.window} frames "
                f"({max(0, self._next - self.window)} to {self._next - 1}). Pass a list, a folder "
                f"or a video file to go back further"
            )
        while True:
            try:
                raw = next(self._frames)
            except StopIteration:
                self.num_frames = self._next
                raise IndexError(
                    f"{self.name}: frame {index} is out of range, the stream ended after "
                    f"{self._next} frames"
                ) from None
            number = self._next
            self._next += 1
            check_count(self._next, self._max_frames, self.name)
            frame = _convert(raw, number, self._max_pixels)
            if number == index:
                return frame
            self._insert(number, frame)


class Camera(FrameStream):
    """A camera by its number, through OpenCV (`pip install opencv-python-headless`)."""

    def __init__(self, number: int) -> None:
        try:
            import cv2
        except ImportError as error:
            raise ImportError(
                f"camera {number}: needs OpenCV; pip install opencv-python-headless"
            ) from error
        self._device = cv2.VideoCapture(number)
        if not self._device.isOpened():
            raise ValueError(f"camera {number}: cannot be opened")
        super().__init__(self._grab(), name=f"camera {number}")

    def _grab(self) -> Iterator[Frame]:
        while True:
            success, frame = self._device.read()
            if not success:
                return
            yield np.ascontiguousarray(frame[:, :, ::-1], dtype=np.uint8)

    def close(self) -> None:
        super().close()
        self._device.release()


def _convert(frame: Any, index: int, max_pixels: int, upright: bool = False) -> Frame:
    try:
        if isinstance(frame, (str, PathLike)):
            return load_image(frame, max_pixels=max_pixels, upright=upright)
        return as_rgb_uint8(frame, max_pixels=max_pixels)
    except (ValueError, TypeError) as error:
        raise type(error)(f"frame {index}: {error}") from error
