"""Read a video file, or its bytes, frame by frame through PyAV (FFmpeg), with exact frame numbers.

The packets are listed once without decoding them. A frame is then located by its time stamp and
decoded from the nearest key frame before it. If the packets do not identify the frames (missing or
repeated time stamps, hidden frames, damage), the frames are counted by decoding the whole file
once. If only the end is damaged or cut off, the last groups of pictures are decoded, to list the
frames that can be read.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sam2_fast.io.frame_table import (
    FrameTable,
    PacketInfo,
    frame_rate,
    from_frames,
    from_packets,
    seconds_of,
)
from sam2_fast.io.frames import Frame, FrameSource
from sam2_fast.io.limits import (
    MAX_FRAMES,
    MAX_PIXELS,
    MAX_STREAMS,
    check_count,
    check_frames,
    check_pixels,
)
from sam2_fast.io.mp4_header import check_sample_counts
from sam2_fast.io.video_decoder import VideoDecoder, import_av
from sam2_fast.io.video_stream import to_rgb

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

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

WHOLE_PACKETS = ("mov,mp4", "matroska", "flv", "asf", "ogg")
"""Containers, by the start of their names, that show which packets are cut off."""


class VideoFile(VideoDecoder, FrameSource):
    """Random access to a video file by frame number.

    Frame k is the k-th frame that a decoder shows, in order of time. Colours are 8-bit RGB.
    The display matrix (rotation by multiples of 90 degrees, mirroring) is applied, as players do;
    the pixel aspect ratio is not. A truncated file has the frames that can be decoded.
    fps: the mean rate of all frames, by their time stamps; without them, the rate in the header.
    """

    reads_ahead = True

    def __init__(
        self,
        source: Path | bytes,
        *,
        max_pixels: int = MAX_PIXELS,
        max_frames: int = MAX_FRAMES,
        max_streams: int = MAX_STREAMS,
    ) -> None:
        name = f"video {source}" if isinstance(source, Path) else f"video of {len(source)} bytes"
        VideoDecoder.__init__(self, source, name, max_pixels, max_streams)
        self._check_header(name, max_frames, max_streams)
        try:
            self._reopen()
            context = cast(Any, self._stream).codec_context
            check_pixels(context.width, context.height, max_pixels, name)
            fps = self._list_frames(name, max_frames)
            check_frames(context.width, context.height, len(self._times), max_pixels, name)
            first = self._first_frame(name)
        except self._av.FFmpegError as error:
            self._release()
            is_refused = isinstance(error, self._av.error.ArgumentError)
            reason = "its format is not supported" if is_refused else error.strerror
            raise ValueError(f"{name}: cannot be read as a video ({reason})") from error
        except BaseException:
            self._release()
            raise
        height, width = first.shape[:2]
        FrameSource.__init__(self, name, len(self._times), height, width, fps)
        self._insert(0, first)

    def frame_time(self, index: int) -> float | None:
        """Seconds from the start of the file, as players count, to frame `index`.

        The start is that of the first stream, so the first frame of a file without sound is at 0.0.
        Without usable time stamps, frames follow each other at the rate in the header; None if the
        file has none.
        """
        if self._seconds is not None:
            return self._seconds[index]
        return None if self.fps is None else index / self.fps

    def close(self) -> None:
        super().close()
        with self._lock:
            self._release()

    def __getstate__(self) -> dict[str, Any]:
        decoder = ("_av", "_container", "_stream", "_decoded")
        return {k: v for k, v in super().__getstate__().items() if k not in decoder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._av = import_av()
        self._container = self._stream = None
        if not self._closed:
            self._reopen()

    def _read(self, index: int) -> Frame:
        """Decode onwards from the current position if that is shorter than a seek.

        Otherwise seek to the last key frame before the frame; if the frame does not appear after
        it, try the key frame before that one, and then the start.
        """
        try:
            frame = self._read_once(index)
            if frame is None and self._distrusts_threads():
                self._reopen()
                frame = self._read_once(index)
        except self._av.FFmpegError as error:
            raise ValueError(
                f"{self.name}: frame {index} cannot be read ({error.strerror})"
            ) from error
        if frame is None:
            raise ValueError(
                f"{self.name}: frame {index} cannot be decoded; the file is damaged there"
            )
        return frame

    def _read_once(self, index: int) -> Frame | None:
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
        return None

    def _decode_to(self, index: int, keep_from: int) -> Frame | None:
        """Decode up to frame `index` and return it; None if it does not appear.

        Frames from number `keep_from` on are put into the window.
        """
        for number, frame in self._numbered():
            self._next = number + 1
            if number == index:
                return to_rgb(frame, self._label)
            if number > index:
                return None
            if number >= keep_from:
                self._insert(number, to_rgb(frame, self._label))
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
        if not self._seek_to(self._times[key]):
            return False
        self._decoded = self._decode()
        self._next = key
        return True

    def _list_frames(self, name: str, max_frames: int) -> float | None:
        """Set `_times` (one per frame), `_keys`, `_timed`, `_number_at` and `_seconds`.

        Returns the frames per second.
        """
        self._ends_early = False
        packets: list[PacketInfo] = []
        for packet in self._packets():
            if not packet.is_discard:
                packets.append(PacketInfo(packet.pts, packet.is_keyframe, packet.is_corrupt))
                check_count(len(packets), max_frames, name)
        self._has_errors = self._ends_early or any(packet.is_corrupt for packet in packets)
        self._distrusts_threads()
        table = from_packets(packets) if self._is_one_frame_per_packet() else None
        stamps: list[int | None]
        if table is not None:
            table = self._without_damage(table, packets)
        if table is None:
            stamps = self._count_frames(name, max_frames)
            table = from_frames(stamps, packets)
        else:
            stamps = list(table.times)
        self._times, self._keys, self._timed = table
        self._number_at = {time: number for number, time in enumerate(self._times)}
        self._reopen()
        return self._set_clock(stamps)

    def _count_frames(self, name: str, max_frames: int) -> list[int | None]:
        """Time stamps of all frames, by decoding the whole file.

        One thread decodes H.264 if the container does not show cuts: several threads report a
        damaged last frame by chance only.
        """
        context = self._stream.codec_context
        is_cautious = context.name == "h264" and not self._shows_cuts() and not self._is_damaged
        self._is_damaged |= is_cautious
        self._reopen()
        stamps: list[int | None] = []
        for frame in self._decode():
            stamps.append(frame.pts)
            check_count(len(stamps), max_frames, name)
        if is_cautious:
            self._is_damaged = self._has_errors
        return self._count_frames(name, max_frames) if self._distrusts_threads() else stamps

    def _set_clock(self, stamps: list[int | None]) -> float | None:
        """Set `_seconds`; returns the frames per second. stamps: of the frames, in their order."""
        stream = self._stream
        base = Fraction(stream.time_base or 1)
        start = self._container.start_time
        self._seconds = seconds_of(stamps, base, None if start is None else start / 1_000_000)
        ticks = None if self._seconds is None else [stamp for stamp in stamps if stamp is not None]
        return frame_rate(ticks, base, (stream.average_rate, stream.guessed_rate))

    def _is_one_frame_per_packet(self) -> bool:
        # AVI has no time stamps.
        return (
            self._stream.codec_context.name in ONE_FRAME_PER_PACKET
            and self._container.format.name != "avi"
        )

    def _shows_cuts(self) -> bool:
        return bool(self._container.format.name.startswith(WHOLE_PACKETS))

    def _without_damage(self, table: FrameTable, packets: list[PacketInfo]) -> FrameTable | None:
        """The table without frames at the end that cannot be decoded.

        None if the file is damaged before its last groups of pictures.
        """
        corrupt = {packet.pts for packet in packets if packet.is_corrupt}
        if not corrupt and not self._ends_early and self._shows_cuts():
            return table
        last = table.keys[-1]
        if any(pts is not None and pts < table.times[last] for pts in corrupt):
            return None
        key = table.keys[max(0, len(table.keys) - 2)]
        is_damaged = self._is_damaged
        self._is_damaged = True  # one thread, to see which frames are damaged
        self._reopen()
        if key > 0 and not self._seek_to(table.times[key]):
            return None
        decoded = {frame.pts: frame.is_corrupt for frame in self._decode()}
        self._is_damaged = is_damaged or any(decoded.get(t, True) for t in table.times[last:])
        times = [
            time for number, time in enumerate(table.times) if number < last or time in decoded
        ]
        return FrameTable(times, [key for key in table.keys if key < len(times)], True)

    def _first_frame(self, name: str) -> Frame:
        for number, frame in self._numbered():
            self._next = number + 1
            if number == 0:
                return to_rgb(frame, self._label)
            break
        raise ValueError(f"{name}: no frames; the file is empty or damaged")

    def _check_header(self, name: str, max_frames: int, max_streams: int) -> None:
        if isinstance(self._source, bytes):
            check_sample_counts(
                io.BytesIO(self._source), len(self._source), max_frames, name, max_streams
            )
            return
        try:
            with self._source.open("rb") as stream:
                check_sample_counts(
                    stream, self._source.stat().st_size, max_frames, name, max_streams
                )
        except OSError as error:
            raise ValueError(f"{name}: cannot be opened ({error.strerror})") from error
