"""What every video looks like from above: numbered frames, read one at a time, with a small window
of recent ones kept.
"""

from __future__ import annotations

import operator
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import SupportsIndex

import numpy as np
import numpy.typing as npt

Frame = npt.NDArray[np.uint8]
"""[H, W, 3] uint8 RGB, read-only: the window shares it with later readers."""

WINDOW_FRAMES = 32
WINDOW_BYTES = 256 * 2**20
"""The window keeps at most this many frames and at most this many bytes, but never fewer than two
frames.
"""


class FrameGoneError(LookupError):
    """A frame of a stream that was passed and is no longer in the window."""


class FrameSource(ABC):
    """Frames of one video. Frames are decoded when asked for; only the window is held in memory.

    `num_frames` is None while it is unknown (a stream); `height` and `width` are in pixels and the
    same for every frame; `fps` is None where the source has no clock; `sequential` sources cannot
    go back further than the window.
    Threads may share a source: reads take turns, and what is in the window waits for none.
    `reads_ahead`: frames come from files, and may be decoded on a thread of the source before they
        are asked for.
    """

    sequential = False
    reads_ahead = False

    def __init__(
        self, name: str, num_frames: int | None, height: int, width: int, fps: float | None = None
    ) -> None:
        self.name = name
        self.num_frames = num_frames
        self.height = height
        self.width = width
        self.fps = fps
        self.window = min(WINDOW_FRAMES, max(2, WINDOW_BYTES // max(1, height * width * 3)))
        self._kept: OrderedDict[int, Frame] = OrderedDict()
        self._lock = threading.RLock()  # of the decoder
        self._window_lock = threading.Lock()
        self._reader: ThreadPoolExecutor | None = None
        self._closed = False

    @abstractmethod
    def _read(self, index: int) -> Frame:
        """Decode frame `index`, which is neither in the window nor out of range. Called with the
        lock held.
        """

    def __getitem__(self, index: SupportsIndex) -> Frame:
        """Frame `index` (from 0). IndexError outside the video, ValueError for a damaged frame or
        one of another size.
        """
        if isinstance(index, (bool, np.bool_)):
            raise TypeError(f"frame index: expected an integer, got {index!r}")
        number = operator.index(index)
        held = self._held(number)
        if held is not None:
            return held
        with self._lock:
            held = self._held(number)  # decoded while this thread waited for its turn
            return self._keep(number, self._read(number)) if held is None else held

    def read_ahead(self, index: int) -> None:
        """Begin to decode frame `index`, where the source can. What goes wrong is raised when the
        frame is asked for.
        """
        if not self.reads_ahead or self._closed or not 0 <= index < (self.num_frames or 0):
            return
        if self._reader is None:
            self._reader = ThreadPoolExecutor(1, "sam2_fast-read-ahead")
        self._reader.submit(self.__getitem__, index)

    def __len__(self) -> int:
        if self.num_frames is None:
            raise TypeError(
                f"{self.name}: the number of frames is not known yet; test num_frames for None"
            )
        return self.num_frames

    def __iter__(self) -> Iterator[Frame]:
        """All frames in order; ends with the video, whether or not its length was known."""
        index = 0
        while self.num_frames is None or index < self.num_frames:
            try:
                frame = self[index]
            except IndexError:
                return
            yield frame
            index += 1

    def close(self) -> None:
        """Let go of files and frames. Later reads raise ValueError; closing twice is fine."""
        reader, self._reader, self._closed = self._reader, None, True
        if reader is not None:
            reader.shutdown(cancel_futures=True)
        with self._window_lock:
            self._kept.clear()

    def __enter__(self) -> FrameSource:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        count = "unknown" if self.num_frames is None else self.num_frames
        return f"<{type(self).__name__} {self.name}: {count} frames, {self.width} x {self.height}>"

    def _held(self, number: int) -> Frame | None:
        """Frame `number` if it is in the window."""
        with self._window_lock:
            if self._closed:
                raise ValueError(f"{self.name}: the video is closed")
            if number < 0 or (self.num_frames is not None and number >= self.num_frames):
                raise IndexError(
                    f"{self.name}: frame {number} is out of range, the video has frames 0 to "
                    f"{self._last()}"
                )
            if number in self._kept:
                self._kept.move_to_end(number)
            return self._kept.get(number)

    def _keep(self, index: int, frame: Frame) -> Frame:
        """Check the size, put the frame into the window, forget the least recently used one."""
        height, width = frame.shape[:2]
        if (height, width) != (self.height, self.width):
            raise ValueError(
                f"{self.name}: frame {index} is {width} x {height} pixels, the video is "
                f"{self.width} x {self.height}; "
                "all frames must have the same size"
            )
        shared = frame.view()
        shared.flags.writeable = False
        with self._window_lock:
            self._kept[index] = shared
            self._kept.move_to_end(index)
            while len(self._kept) > self.window:
                self._kept.popitem(last=False)
        return shared

    def _last(self) -> int:
        return (self.num_frames or 0) - 1
