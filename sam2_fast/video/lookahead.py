"""Image features of a session's frames.

On a GPU, the next frames of a propagation are encoded ahead, in batches on a side stream.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sam2_fast.model import Sam2
from sam2_fast.ops.core.cache import Cache
from sam2_fast.recording.cache import Graphs
from sam2_fast.recording.cuda_graph import SideStream
from sam2_fast.recording.fingerprint import Fingerprint
from sam2_fast.types import Features
from sam2_fast.video.frames import Frames, model_input

BATCH = 4
"""Frames that are encoded together.

At most twice as many are in memory: the features of a frame are 8 MB in bfloat16 at 1024 pixels.
"""
READS = 2
"""Frames that are read for each tracked frame, until there are enough for a batch."""


class FrameEncoder(Protocol):
    """Encodes frames: a `Runner`, or the official steps of a model."""

    @property
    def model(self) -> Sam2:
        """The model."""

    @property
    def encoder_graphs(self) -> Graphs | None:
        """CUDA graphs to encode from, or None."""

    def encode(self, images: Tensor, fingerprint: Fingerprint | None = None) -> Any:
        """Features of images [B, 3, S, S]."""

    def fingerprint(self) -> Fingerprint | None:
        """The model's fingerprint now; None without graphs."""


class LookAhead:
    """Image features of the frames of one propagation, some of them computed ahead of time.

    Without CUDA graphs, each frame is encoded when it is requested.
    """

    def __init__(self, frames: Frames, device: torch.device, order: range = range(0)) -> None:
        """order: the frames of the propagation; empty if they are unknown, and for prompts."""
        self.frames = frames
        self._device = device
        self._order = order
        # The last position in `_order` that was read.
        self._last_read = -1
        # Frames that were read and are not encoded yet: [1, 3, S, S] each.
        self._images: dict[int, Tensor] = {}
        # Features of encoded frames, and the event that a stream must wait for to read them.
        self._encoded: dict[int, tuple[Features, Any]] = {}
        self._stream: SideStream | None = None

    def advance(self, frame: int, runner: FrameEncoder) -> None:
        """Read frames after `frame`, and encode them once there are enough for a batch.

        Call it when the work of `frame` is enqueued. A frame that cannot be read is skipped here;
        its error is raised when its features are requested.
        """
        position = self._position_of(frame)
        if runner.encoder_graphs is None or position < 0:
            return
        if self._stream is None:
            self._stream = SideStream(self._device)
        self._last_read = max(self._last_read, position)
        for _ in range(READS):
            if not self._read_next(self._stream, runner):
                break
        if len(self._images) >= BATCH:
            self._encode_batch(self._stream, runner)

    def read_after(self, frame: int) -> None:
        """Start to read the frame after `frame`."""
        self._read_ahead(self._position_of(frame) + 1)

    def features(self, frame: int, runner: FrameEncoder) -> Any:
        """Features of a frame, [1, ...], ready to be used on the current stream."""
        if runner.encoder_graphs is None:
            pixels = self.frames[frame]
            self.read_after(frame)
            return runner.encode(self._input(pixels, runner))
        self._drop_before(frame)
        if frame in self._encoded and self._stream is not None:
            features, event = self._encoded.pop(frame)
            self._stream.wait_event(event, features)
            return features
        if frame in self._images and self._stream is not None:
            image = self._images.pop(frame)
            self._stream.wait_event(self._stream.record_event(), [image])
        else:
            image = self._input(self.frames[frame], runner)
        return runner.encode(image)

    def _input(self, pixels: np.ndarray | Tensor, runner: FrameEncoder) -> Tensor:
        return model_input(pixels, runner.model.config.image_size, self._device)[None]

    def _read_next(self, stream: SideStream, runner: FrameEncoder) -> bool:
        """Read one more frame and copy it to the device on the side stream.

        Returns False if there is no further frame, two batches are in memory, or reading failed.
        """
        following = self._last_read + 1
        if following >= len(self._order) or len(self._images) + len(self._encoded) >= 2 * BATCH:
            return False
        frame = self._order[following]
        try:
            pixels = self.frames[frame]
        except (LookupError, OSError, ValueError):
            return False
        with stream.enter():
            self._images[frame] = self._input(pixels, runner)
        self._last_read = following
        self._read_ahead(following + 1)
        return True

    def _encode_batch(self, stream: SideStream, runner: FrameEncoder) -> None:
        members = list(self._images)[:BATCH]
        fingerprint = runner.fingerprint()
        # The batch reads the weights and values computed from them.
        with stream.enter((fingerprint, Cache.computations)):
            batch = torch.cat([self._images.pop(frame) for frame in members])
            features = runner.encode(batch, fingerprint)
        event = stream.record_event()
        self._encoded |= {frame: (features.image(i), event) for i, frame in enumerate(members)}

    def _read_ahead(self, position: int) -> None:
        if 0 < position < len(self._order):
            self.frames.read_ahead(self._order[position])

    def _position_of(self, frame: int) -> int:
        """The position of a frame in `_order`, or -1."""
        return self._order.index(frame) if frame in self._order else -1

    def _drop_before(self, frame: int) -> None:
        """Drop frames that come before `frame` and were never requested."""
        first = max(self._position_of(frame), 0)
        for cached in (self._images, self._encoded):
            for skipped in [f for f in cached if self._position_of(f) < first]:
                del cached[skipped]
