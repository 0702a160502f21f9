"""The base class of all videos: numbered frames, with a window of recent frames in memory."""

from __future__ import annotations

import operator
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, SupportsIndex

import numpy as np
import numpy.typing as npt

Frame = npt.NDArray[np.uint8]
"""[H, W, 3] uint8 RGB. Read-only, because the window shares it with later readers."""

WINDOW_FRAMES = 32
WINDOW_BYTES = 256 * 2**20
"""The window holds at most this many frames and at most this many bytes.

It always holds at least two frames, whatever their size.
"""


_OF_PROCESS = ("_recent", "_lock", "_window_lock", "_reader")
"""Attributes that cannot be passed to another process."""


class FrameGoneError(LookupError):
    """The requested frame of a stream is no longer in the window."""


class FrameSource(ABC):
    """Frames of one video, decoded on demand. Only the window of recent frames stays in memory.

    num_frames: number of frames, None while it is unknown (a stream).
    height, width: size of every frame in pixels.
    fps: mean frames per second, or None if the source has no clock; see `frame_time`.
    sequential: True if the source cannot go back further than the window.
    reads_ahead: True if frames come from files; `read_ahead` then decodes in a background thread.
    Threads may share a source. One thread decodes at a time, and a frame that is in the window is
    returned without waiting for it.
    A source can be pickled without its window if its frames can be read again. `copy.deepcopy`
    returns the source itself, because its frames do not change.
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
        self._closed = False
        self._start_empty()

    def _start_empty(self) -> None:
        self._recent: OrderedDict[int, Frame] = OrderedDict()
        self._lock = threading.RLock()  # guards the decoder
        self._window_lock = threading.Lock()  # guards `_recent`
        self._reader: ThreadPoolExecutor | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> FrameSource:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k not in _OF_PROCESS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start_empty()

    @abstractmethod
    def _read(self, index: int) -> Frame:
        """Decode frame `index`, which is in range and not in the window.

        Called with `_lock` locked.
        """

    def __getitem__(self, index: SupportsIndex) -> Frame:
        """Frame `index`, counted from 0.

        Raises IndexError outside the video, and ValueError if the frame is damaged or has another
        size than the video.
        """
        if isinstance(index, (bool, np.bool_)):
            raise TypeError(f"frame index: expected an integer, got {index!r}")
        number = operator.index(index)
        frame = self._cached(number)
        if frame is not None:
            return frame
        with self._lock:
            frame = self._cached(number)  # another thread may have decoded it meanwhile
            return self._insert(number, self._read(number)) if frame is None else frame

    def frame_name(self, index: int) -> str:
        """The source's own name of frame `index`: the name of its file without the suffix.

        A frame without a name of its own is named by its position, with five digits or more. The
        names of a source differ from each other.
        """
        return f"{index:05d}"

    def frame_time(self, index: int) -> float | None:
        """Seconds from the start of the video to frame `index`; None if the source has no clock."""
        return None

    def check_sizes(self, frames: range | None = None) -> None:
        """Raise ValueError if the file of a frame has another size than the video.

        Reads headers only, of sources of which each frame is a file; other sources do nothing.
        frames: the frames to check; None: all. The error names the file.
        """
        return

    def read_ahead(self, index: int) -> None:
        """Start decoding frame `index` in the background, if the source supports it.

        Errors are raised later, when the frame is read.
        """
        if not self.reads_ahead or not 0 <= index < (self.num_frames or 0):
            return
        with self._window_lock:  # another thread may close the source
            if self._closed:
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
        """All frames in order, up to the end of the video even if its length is unknown."""
        index = 0
        while self.num_frames is None or index < self.num_frames:
            try:
                frame = self[index]
            except IndexError:
                return
            yield frame
            index += 1

    def close(self) -> None:
        """Release files and frames. Later reads raise ValueError; closing twice is harmless."""
        with self._window_lock:
            reader, self._reader = self._reader, None
            self._closed = True
        if reader is not None:
            reader.shutdown(cancel_futures=True)
        with self._window_lock:
            self._recent.clear()

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

    def _cached(self, number: int) -> Frame | None:
        """Frame `number` if it is in the window, else None."""
        with self._window_lock:
            if self._closed:
                raise ValueError(f"{self.name}: the video is closed")
            if number < 0 or (self.num_frames is not None and number >= self.num_frames):
                raise IndexError(
                    f"{self.name}: frame {number} is out of range, the video has frames 0 to "
                    f"{self._last()}"
                )
            if number in self._recent:
                self._recent.move_to_end(number)
            return self._recent.get(number)

    def _insert(self, index: int, frame: Frame) -> Frame:
        """Put a frame into the window, which drops the least recently used one if it is full.

        Raises ValueError if the frame has another size than the video.
        """
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
            self._recent[index] = shared
            self._recent.move_to_end(index)
            while len(self._recent) > self.window:
                self._recent.popitem(last=False)
        return shared

    def _last(self) -> int:
        return (self.num_frames or 0) - 1
