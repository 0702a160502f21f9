"""Image features of a session's frames: on a GPU, frames to come are encoded in batches on a
side stream."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sam2_fast.io.transforms import frame_input
from sam2_fast.ops.core.cache import Cache
from sam2_fast.recording.cache import Runner
from sam2_fast.recording.cuda_graph import SideStream
from sam2_fast.types import Features

BATCH = 4
"""Frames that are encoded together. Twice as many are held at most: 8 MB of features each in
bfloat16 at 1024 pixels."""
READS = 2
"""Frames that are read ahead for each one that is tracked, until a batch is ready."""


class Frames(Protocol):
    """Where frames come from: `io.video` sources, or `StreamFrames`."""

    @property
    def num_frames(self) -> int | None:
        """How many frames there are; None while that is unknown."""

    @property
    def height(self) -> int:
        """Pixels."""

    @property
    def width(self) -> int:
        """Pixels."""

    def __getitem__(self, index: int) -> np.ndarray:
        """Frame `index`: uint8 [H, W, 3] RGB."""

    def read_ahead(self, index: int) -> None:
        """Frame `index` will be asked for next."""


class LookAhead:
    """Image features of the frames of one pass over a video, some of them ahead of time.

    Where nothing can be recorded, frames are encoded one by one, when they are asked for.
    """

    def __init__(self, frames: Frames, device: torch.device, order: range = range(0)) -> None:
        """order: the frames to come, as far as they are known; empty for streams and prompts."""
        self._frames = frames
        self._device = device
        self._order = order
        self._read = -1  # the position in `_order` up to which frames were read
        self._images: dict[int, Tensor] = {}  # [1, 3, S, S] each, read but not encoded
        # features and the event after which they can be read
        self._encoded: dict[int, tuple[Features, Any]] = {}
        self._stream: SideStream | None = None

    def advance(self, frame: int, runner: Runner) -> None:
        """Once `frame` is under way: read some of the frames to come, and encode those that make a
        batch.

        A frame that cannot be read is left alone until it is asked for.
        """
        position = self._position_of(frame)
        if runner.graphs is None or position < 0:
            return
        if self._stream is None:
            self._stream = SideStream(self._device)
        self._read = max(self._read, position)
        for _ in range(READS):
            if not self._read_next(self._stream, runner):
                break
        if len(self._images) >= BATCH:
            self._encode_batch(self._stream, runner)

    def features(self, frame: int, runner: Runner) -> Features:
        """Features of a frame, [1, ...], for the current stream."""
        if runner.graphs is None:
            pixels = self._frames[frame]
            self._read_ahead(self._position_of(frame) + 1)
            return runner.encode(self._input(pixels, runner))
        self._forget_before(frame)
        if frame in self._encoded and self._stream is not None:
            features, event = self._encoded.pop(frame)
            self._stream.wait_event(event, features)
            return features
        if frame in self._images and self._stream is not None:
            image = self._images.pop(frame)
            self._stream.wait_event(self._stream.record_event(), [image])
        else:
            image = self._input(self._frames[frame], runner)
        return runner.encode(image)

    def _input(self, pixels: np.ndarray, runner: Runner) -> Tensor:
        return frame_input(pixels, runner.model.config.image_size, self._device)[None]

    def _read_next(self, stream: SideStream, runner: Runner) -> bool:
        """Whether a further frame was read and brought to the side stream."""
        following = self._read + 1
        if following >= len(self._order) or len(self._images) + len(self._encoded) >= 2 * BATCH:
            return False
        frame = self._order[following]
        try:
            pixels = self._frames[frame]
        except (LookupError, OSError, ValueError):
            return False
        with stream.enter():
            self._images[frame] = self._input(pixels, runner)
        self._read = following
        self._read_ahead(following + 1)
        return True

    def _encode_batch(self, stream: SideStream, runner: Runner) -> None:
        members, checked = list(self._images)[:BATCH], runner.current()
        with stream.enter((checked, Cache.computations)):
            batch = torch.cat([self._images.pop(frame) for frame in members])
            features = runner.encode(batch, checked)
        event = stream.record_event()
        self._encoded |= {frame: (features.image(i), event) for i, frame in enumerate(members)}

    def _read_ahead(self, position: int) -> None:
        if 0 < position < len(self._order):
            self._frames.read_ahead(self._order[position])

    def _position_of(self, frame: int) -> int:
        return self._order.index(frame) if frame in self._order else -1

    def _forget_before(self, frame: int) -> None:
        """What the pass went by without asking for it."""
        first = max(self._position_of(frame), 0)
        for held in (self._images, self._encoded):
            for passed in [f for f in held if self._position_of(f) < first]:
                del held[passed]


class FeatureCache:
    """Owns the image features of a session's current frame."""

    def __init__(self, frames: Frames, device: torch.device) -> None:
        self.current: tuple[int, Features] | None = None
        """The frame that was asked for last, and its features, [1, ...]."""
        self._alone = LookAhead(frames, device)

    def get(self, frame: int, runner: Runner, ahead: LookAhead | None = None) -> Features:
        """Features of a frame, [1, ...], for the current stream. ahead: of the pass that asks."""
        if self.current is None or self.current[0] != frame:
            self.current = frame, (ahead or self._alone).features(frame, runner)
        return self.current[1]
