"""Write frames to a video file: H.264 or MPEG-4 in MP4, or an animated WebP."""

from __future__ import annotations

import math
import os
from collections.abc import Container, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from sam2_fast.files.atomic import PendingFile

RGB8 = npt.NDArray[np.uint8]

MIN_FPS = 1e-3
MAX_FPS = 1e5
TICKS = 60_000
"""Units of time of a second in an MP4 file with time stamps. MPEG-4 has at most 65535."""
WEBP_TICKS = 1000
SHORTEST = 0.001
"""Seconds from a frame to the next one if their time stamps do not increase."""

_CODEC_OPTIONS = {
    "libx264": {"crf": "20", "preset": "veryfast"},
    "mpeg4": {"qscale": "3"},
    "libwebp_anim": {"quality": "75"},
}
# A fixed number, so that the file does not depend on the machine's cores.
_ENCODER_THREADS = 4

_MATRICES = {"ITU709": 1, "ITU601": 6}  # FFmpeg's name for the conversion, number of the tag
_BT709 = 1  # primaries and transfer of sRGB pictures
_LIMITED = 1


class VideoWriter:
    """Writes frames [H, W, 3] uint8 to a video file, one at a time. There is no sound.

    A path that ends in .webp becomes an animated WebP, which loops and which browsers show like an
    image; any other path becomes an MP4. The codec of an MP4 is H.264 if the installed FFmpeg can
    write it, else MPEG-4. All need even sizes, so an odd height or width is padded by one row or
    column. Colours are tagged and converted as players assume by size: BT.709 from 720 lines or
    1280 columns on, else BT.601; limited range. The same frames give the same bytes.

    The file appears when the writer is closed, and not after an error. Use as a context manager, or
    call `close` or `abort`. Needs PyAV: `pip install "sam2-fast[video]"`.

    fps: frames per second, 0.001 to 100000; not used for frames with `seconds`.
    Raises OSError if the file cannot be written, ValueError if FFmpeg refuses it; both name it.
    """

    def __init__(
        self, path: str | os.PathLike[str], height: int, width: int, fps: float = 24.0
    ) -> None:
        try:
            import av
        except ImportError as error:
            raise ImportError(
                'writing videos needs PyAV: pip install "sam2-fast[video]"'
            ) from error
        if not MIN_FPS <= fps <= MAX_FPS:
            raise ValueError(
                f"fps: expected {MIN_FPS:g} to {MAX_FPS:g}, got {fps}; pass the times of the "
                f"frames to `write` instead"
            )
        self._path = os.fspath(path)
        self._is_webp = self._path.lower().endswith(".webp")
        self._codec = _codec(self._is_webp, av.codecs_available)
        self._size = (height, width)
        self._rate = _fraction(fps)
        self._av: Any = av
        self._frames = 0
        self._ticks: list[int] = []  # of the last two frames
        self._start: float | None = None  # seconds of the first frame; None without times
        self._stream: Any = None
        self._last_packet: Any = None
        self._container: Any = None
        self._is_open = True
        with self._errors():
            self._pending = PendingFile(path)
            # An opened file, because FFmpeg takes names with colons for addresses.
            self._file = self._pending.temporary.open("wb+")
        try:
            with self._errors():
                self._container = av.open(
                    self._file,
                    mode="w",
                    format="webp" if self._is_webp else "mp4",
                    options=self._container_options(),
                )
        except BaseException:
            self.abort()
            raise

    @property
    def frames(self) -> int:
        """The number of frames that have been written."""
        return self._frames

    def write(self, frame: RGB8, seconds: float | None = None) -> None:
        """Append one frame: uint8 [height, width, 3].

        seconds: its time; the first frame of the file is at 0 whatever its time. Frames keep their
            distances, and the last one lasts as long as the one before it. A time that is not after
            that of the frame before counts as 1 ms after it. None: frames follow each other at the
            rate `fps`.
        Raises ValueError for another shape or dtype, for a time that is not finite, and if only
        some frames of a file have a time.
        """
        if not self._is_open:
            raise ValueError(f"video {self._path}: the writer is closed")
        if frame.shape != (*self._size, 3) or frame.dtype != np.uint8:
            raise ValueError(
                f"frame: expected uint8 {[*self._size, 3]}, got {frame.dtype} {[*frame.shape]}"
            )
        if seconds is not None and not math.isfinite(seconds):
            raise ValueError(f"seconds: expected a finite number, got {seconds}")
        if self._frames and (seconds is None) != (self._start is None):
            raise ValueError("seconds: expected for all frames of a video, or for none of them")
        with self._errors():
            if self._stream is None:
                self._start = seconds
                self._stream = self._add_stream()
            picture = self._picture(frame)
            picture.pts = self._next_ticks(seconds)
            picture.time_base = self._time_base()
            self._mux(self._stream.encode(picture))
        self._frames += 1

    def close(self) -> None:
        """Complete the file and move it to its path.

        Without any frame there is no file; see `frames`. Closing twice is harmless.
        """
        if not self._is_open:
            return
        if not self._frames:
            self.abort()
            return
        try:
            with self._errors():
                self._mux(self._stream.encode(None))
                self._mux_last()
                self._container.close()
                self._file.close()
                self._pending.commit()
            self._is_open = False
        finally:
            self.abort()

    def abort(self) -> None:
        """Discard the unfinished file. Never raises; does nothing after `close`."""
        if not self._is_open:
            return
        self._is_open = False
        with suppress(self._av.FFmpegError, OSError, ValueError):
            if self._container is not None:
                self._container.close()
        with suppress(OSError):
            self._file.close()
        with suppress(OSError):
            self._pending.discard()

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def _container_options(self) -> dict[str, str]:
        if self._is_webp:
            return {"loop": "0"}
        # The length of the file is counted in milliseconds otherwise, too coarse for such rates.
        return {"movie_timescale": str(2 * TICKS)} if self._rate > 240 else {}

    def _add_stream(self) -> Any:
        height, width = self._size
        stream = cast(Any, self._container.add_stream(self._codec, rate=self._rate))
        stream.height, stream.width = height + height % 2, width + width % 2
        stream.pix_fmt = "yuv420p"
        # Without reordering, the last packet is the last frame, and its duration can be set.
        reordering = {} if self._start is None or self._codec != "libx264" else {"bf": "0"}
        stream.options = _CODEC_OPTIONS[self._codec] | reordering
        stream.time_base = self._time_base()
        context = stream.codec_context
        context.time_base = self._time_base()
        context.thread_count = _ENCODER_THREADS
        if not self._is_webp:
            context.color_range = _LIMITED
            context.colorspace = _MATRICES[self._matrix()]
            context.color_primaries = context.color_trc = _BT709
        return stream

    def _time_base(self) -> Fraction:
        if self._start is None:
            return 1 / self._rate
        return Fraction(1, WEBP_TICKS if self._is_webp else TICKS)

    def _next_ticks(self, seconds: float | None) -> int:
        if self._start is None or seconds is None:
            return self._frames
        base = self._time_base()
        ticks = round((seconds - self._start) / base)
        if self._ticks:
            ticks = max(ticks, self._ticks[-1] + round(SHORTEST / base))
        self._ticks = [*self._ticks[-1:], ticks]
        return ticks

    def _matrix(self) -> str:
        """The conversion from RGB. WebP has only one."""
        height, width = self._size
        is_large = height >= 720 or width >= 1280
        return "ITU709" if is_large and not self._is_webp else "ITU601"

    def _picture(self, frame: RGB8) -> Any:
        even = np.pad(frame, ((0, self._size[0] % 2), (0, self._size[1] % 2), (0, 0)), mode="edge")
        picture = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")
        return picture.reformat(
            format="yuv420p", dst_colorspace=self._matrix(), dst_color_range="MPEG"
        )

    def _mux(self, packets: list[Any]) -> None:
        """Write packets; with times, the last one waits until its duration is known."""
        for packet in packets:
            if self._start is None or self._is_webp:
                self._container.mux(packet)
                continue
            self._mux_last()
            self._last_packet = packet

    def _mux_last(self) -> None:
        packet = self._last_packet
        self._last_packet = None
        if packet is None:
            return
        if len(self._ticks) > 1:
            packet.duration = self._ticks[-1] - self._ticks[-2]
        self._container.mux(packet)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Errors of FFmpeg and of the file system as one that names the path."""
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error)
            raise OSError(error.errno, reason, self._path) from error
        except self._av.FFmpegError as error:
            raise ValueError(f"video {self._path}: cannot be written ({error.strerror})") from error


def _codec(is_webp: bool, available: Container[str]) -> str:
    if not is_webp:
        return "libx264" if "libx264" in available else "mpeg4"
    if "libwebp_anim" not in available:
        raise ValueError("path: the installed PyAV cannot write animated WebP; use a .mp4 path")
    return "libwebp_anim"


def _fraction(fps: float) -> Fraction:
    """The rate with small numbers: 30000/1001 for 29.97..."""
    if fps < 1:
        return 1 / Fraction(1 / fps).limit_denominator(1001)
    return Fraction(fps).limit_denominator(1001)
