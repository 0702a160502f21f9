"""Read a video file, or its bytes, frame by frame through PyAV (FFmpeg), with exact frame numbers.

The packets are listed once without decoding them. A frame is then located by its time stamp and
decoded from the nearest key frame before it. If the packets do not identify the frames (missing or
repeated time stamps, hidden frames), the frames are counted by decoding the whole file once.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sam2_fast.io.frames import Frame, FrameSource
from sam2_fast.io.limits import MAX_FRAMES, MAX_PIXELS, check_pixels
from sam2_fast.io.mp4_header import check_sample_counts

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

CONTAINERS = (
    "mov,mp4,matroska,webm,avi,mpegts,mpeg,flv,ogg,gif,asf,h264,hevc,obu,ivf,m4v,mjpeg,mxf,apng"
)
"""Formats that FFmpeg may try. None of them opens further files or addresses, as play lists do."""

ONE_FRAME_PER_PACKET = (
    "h264",
    "hevc",
    "vp9",
    "av1",
    "mpeg4",
    "mpeg2video",
    "mpeg1video",
    "mjpeg",
    "prores",
    "ffv1",
    "dnxhd",
    "png",
    "gif",
)
"""Codecs of which every packet holds one frame."""


class VideoFile(FrameSource):
    """Random access to a video file by frame number.

    Frame k is the k-th frame that a decoder shows, in order of time. Colours are 8-bit RGB.
    Rotation metadata (multiples of 90 degrees) is applied, as players do; the pixel aspect ratio is
    not. A truncated file has the frames before its end.
    """

    reads_ahead = True

    def __init__(
        self, source: Path | bytes, *, max_pixels: int = MAX_PIXELS, max_frames: int = MAX_FRAMES
    ) -> None:
        self._source = source
        name = f"video {source}" if isinstance(source, Path) else f"video of {len(source)} bytes"
        self._av = _import_av()
        self._options = {"format_whitelist": CONTAINERS, "max_pixels": str(max_pixels)}
        self._container: Any = None
        self._stream: Any = None
        self._check_header(name, max_frames)
        try:
            self._reopen()
            if self._stream is None:
                raise ValueError(f"{name}: no video stream in the file")
            context = self._stream.codec_context
            if context is None:
                raise ValueError(f"{name}: no decoder for its video stream")
            check_pixels(context.width, context.height, max_pixels, name)
            self._list_frames(name, max_frames)
            first = self._first_frame(name)
        except self._av.FFmpegError as error:
            self._release()
            raise ValueError(f"{name}: cannot be read as a video ({error.strerror})") from error
        except BaseException:
            self._release()
            raise
        rate = self._stream.average_rate or self._stream.guessed_rate
        height, width = first.shape[:2]
        super().__init__(name, len(self._times), height, width, float(rate) if rate else None)
        self._insert(0, first)

    def close(self) -> None:
        super().close()
        with self._lock:
            self._release()

    def __getstate__(self) -> dict[str, Any]:
        decoder = ("_av", "_container", "_stream", "_decoded")
        return {k: v for k, v in super().__getstate__().items() if k not in decoder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._av = _import_av()
        self._container = self._stream = None
        if not self._closed:
            self._reopen()

    def _read(self, index: int) -> Frame:
        """Decode onwards from the current position if that is shorter than a seek.

        Otherwise seek to the last key frame before the frame; if the frame does not appear after
        it, try the key frame before that one, and then the start.
        """
        backwards = index < self._next
        if not backwards and self._key_before(index) <= self._next:
            frame = self._decode_to(index, keep_from=index)
            if frame is not None:
                return frame
        keep_from = index - self.window + 1 if backwards else index
        nearest = self._key_before(index)
        second = self._key_before(max(0, nearest - 1))
        for key in dict.fromkeys((nearest, second, 0)):
            frame = self._decode_to(index, keep_from) if self._seek(key) else None
            if frame is not None:
                return frame
        raise ValueError(f"{self.name}: frame {index} cannot be decoded; the file is damaged there")

    def _decode_to(self, index: int, keep_from: int) -> Frame | None:
        """Decode up to frame `index` and return it; None if it does not appear.

        Frames from number `keep_from` on are put into the window.
        """
        for number, frame in self._numbered():
            self._next = number + 1
            if number == index:
                return _to_rgb(frame)
            if number > index:
                return None
            if number >= keep_from:
                self._insert(number, _to_rgb(frame))
        self._next = len(self._times)
        return None

    def _numbered(self) -> Iterator[tuple[int, VideoFrame]]:
        """(number, frame) of the frames from the current position on."""
        for frame in self._decoded:
            if not self._timed:
                yield self._next, frame
            elif frame.pts in self._number_at:
                yield self._number_at[frame.pts], frame

    def _key_before(self, index: int) -> int:
        """The last key frame at or before frame `index`; 0 if only the start can be reached."""
        return self._keys[bisect_right(self._keys, index) - 1]

    def _seek(self, key: int) -> bool:
        """Seek to a key frame; False if the container cannot. The start can always be reached."""
        if key == 0:
            self._reopen()
            return True
        try:
            self._container.seek(
                self._times[key], stream=self._stream, backward=True, any_frame=False
            )
        except self._av.FFmpegError:  # damaged index
            return False
        self._decoded = self._decode()
        self._next = key
        return True

    def _reopen(self) -> None:
        self._release()
        source = (
            io.BytesIO(self._source) if isinstance(self._source, bytes) else f"file:{self._source}"
        )
        self._container = self._av.open(source, mode="r", options=self._options)
        if self._container.streams.video:
            self._stream = self._container.streams.video[0]
            self._stream.thread_type = "AUTO"
            self._decoded = self._decode()
        self._next = 0

    def _decode(self) -> Iterator[VideoFrame]:
        """Frames from the current position on.

        Packets that cannot be decoded are skipped, so that the frames after them are not lost.
        """
        for packet in self._packets():
            try:
                yield from packet.decode()
            except self._av.error.InvalidDataError:
                continue

    def _packets(self) -> Iterator[Any]:
        """Packets from the current position on; the video ends if the data is cut off."""
        try:
            yield from self._container.demux(self._stream)
        except (self._av.error.InvalidDataError, self._av.error.EOFError):
            return

    def _list_frames(self, name: str, max_frames: int) -> None:
        """Set `_times` (one per frame), `_keys` (key frames), `_timed` and `_number_at`."""
        listed: list[tuple[int | None, bool]] = []
        for packet in self._packets():
            if packet.size and not packet.is_discard and not packet.is_corrupt:
                listed.append((packet.pts, packet.is_keyframe))
                _check_count(len(listed), max_frames, name)
        times = [time for time, _ in listed if time is not None]
        first_packet = listed[0] if listed else (None, False)
        self._timed = len(set(times)) == len(listed) > 0
        # AVI has no time stamps.
        one_frame_per_packet = (
            self._stream.codec_context.name in ONE_FRAME_PER_PACKET
            and self._container.format.name != "avi"
        )
        starts_with_key = first_packet[1] and self._timed and first_packet[0] == min(times)
        if not (one_frame_per_packet and starts_with_key):
            self._reopen()
            decoded: list[int | None] = []
            for frame in self._decode():
                decoded.append(frame.pts)
                _check_count(len(decoded), max_frames, name)
            times = [time for time in decoded if time is not None]
            self._timed = len(set(times)) == len(decoded) and times == sorted(times)
            times = times if self._timed else list(range(len(decoded)))
        self._times = sorted(times)
        self._number_at = {time: number for number, time in enumerate(self._times)}
        keys = {0}
        if self._timed:
            keys |= {
                self._number_at[time] for time, key in listed if key and time in self._number_at
            }
        self._keys = sorted(keys)
        self._reopen()

    def _first_frame(self, name: str) -> Frame:
        for number, frame in self._numbered():
            self._next = number + 1
            if number == 0:
                return _to_rgb(frame)
            break
        raise ValueError(f"{name}: no frames; the file is empty or damaged")

    def _check_header(self, name: str, max_frames: int) -> None:
        if isinstance(self._source, bytes):
            check_sample_counts(io.BytesIO(self._source), len(self._source), max_frames, name)
            return
        try:
            with self._source.open("rb") as stream:
                check_sample_counts(stream, self._source.stat().st_size, max_frames, name)
        except OSError as error:
            raise ValueError(f"{name}: cannot be opened ({error.strerror})") from error

    def _release(self) -> None:
        if self._container is not None:
            self._container.close()
            self._container = self._stream = None


def _to_rgb(frame: VideoFrame) -> Frame:
    quarter_turns = round(frame.rotation / 90)
    rgb = np.asarray(frame.to_ndarray(format="rgb24"), dtype=np.uint8)
    return np.ascontiguousarray(np.rot90(rgb, quarter_turns)) if quarter_turns % 4 else rgb


def _check_count(count: int, max_frames: int, name: str) -> None:
    if count > max_frames:
        raise ValueError(f"{name}: more than {max_frames} frames; raise the limit with max_frames=")


def _import_av() -> Any:
    try:
        import av
    except ImportError as error:
        raise ImportError('video files need PyAV: pip install "sam2-fast[video]"') from error
    return av
