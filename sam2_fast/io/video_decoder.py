"""Decode the video stream of a file from a position on, through PyAV (FFmpeg)."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam2_fast.io.limits import MAX_STREAMS
from sam2_fast.io.video_stream import choose_stream, set_threads

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

CONTAINERS = (
    "mov,mp4,matroska,webm,avi,mpegts,mpeg,flv,ogg,gif,asf,h264,hevc,obu,ivf,m4v,mjpeg,mxf,apng,"
    "mpegvideo,mp3,flac,wav,aac"
)
"""Formats that FFmpeg may try. None of them opens further files or addresses, as play lists do.

Those of sound are for an error that says that there is no video.
"""


class VideoDecoder:
    """An open container, its video stream and the frames from the current position on.

    After damage, one thread decodes; see `set_threads`.
    """

    def __init__(
        self, source: Path | bytes, label: str, max_pixels: int, max_streams: int = MAX_STREAMS
    ) -> None:
        self._source = source
        self._label = label
        self._av = import_av()
        self._options = {"format_whitelist": CONTAINERS, "max_pixels": str(max_pixels)}
        self._options["max_streams"] = str(max_streams)
        self._container: Any = None
        self._stream: Any = None
        self._stream_index: int | None = None
        self._is_damaged = False
        self._has_errors = False
        self._ends_early = False
        self._next = 0
        self._decoded: Iterator[VideoFrame] = iter(())

    def _reopen(self) -> None:
        self._release()
        source = (
            io.BytesIO(self._source) if isinstance(self._source, bytes) else f"file:{self._source}"
        )
        self._container = self._av.open(source, mode="r", options=self._options)
        if self._stream_index is None:
            self._stream_index = choose_stream(self._container, self._label).index
        self._stream = self._container.streams[self._stream_index]
        set_threads(self._stream, self._is_damaged)
        self._decoded = self._decode()
        self._next = 0

    def _decode(self) -> Iterator[VideoFrame]:
        """Frames from the current position on, up to those that the decoder holds at the end.

        Packets that cannot be decoded are skipped, so that the frames after them are not lost.
        """
        context = self._stream.codec_context
        for packet in self._packets():
            yield from self._frames_of(context, packet)
        yield from self._frames_of(context, None)

    def _frames_of(self, context: Any, packet: Any) -> list[VideoFrame]:
        """Frames that come out of the decoder after a packet, or after the end (None)."""
        try:
            frames = list(context.decode(packet))
        except self._av.FFmpegError as error:
            if isinstance(error, MemoryError):
                raise
            self._has_errors = True
            return []
        self._has_errors |= any(frame.is_corrupt for frame in frames)
        return frames

    def _packets(self) -> Iterator[Any]:
        """Packets with data from the current position on; the video ends if the data is cut off."""
        try:
            for packet in self._container.demux(self._stream):
                if packet.size:
                    yield packet
        except (self._av.error.InvalidDataError, self._av.error.EOFError):
            self._ends_early = True

    def _seek_to(self, time: int) -> bool:
        """Continue at the last key frame at or before a time stamp; False if that is refused."""
        try:
            self._container.seek(time, stream=self._stream, backward=True, any_frame=False)
        except self._av.FFmpegError:  # damaged index
            return False
        return True

    def _distrusts_threads(self) -> bool:
        """Decode with one thread from now on, after errors; True if that is a change."""
        changes = self._has_errors and not self._is_damaged
        if changes:
            self._is_damaged = True
        return changes

    def _release(self) -> None:
        if self._container is not None:
            self._container.close()
            self._container = self._stream = None


def import_av() -> Any:
    """The module `av`; without it, an ImportError that names the extra to install."""
    try:
        import av
    except ImportError as error:
        raise ImportError('video files need PyAV: pip install "sam2-fast[video]"') from error
    return av
