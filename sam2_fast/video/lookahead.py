"""Where a pass over a video gets image features from: on a GPU, frames to come are encoded in batches on a second stream."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sam2_fast.io.transforms import frame_input
from sam2_fast.model import Sam2
from sam2_fast.ops.core.cache import Cache
from sam2_fast.recording.cache import Graphs
from sam2_fast.recording.cuda_graph import Lane
from sam2_fast.recording.fingerprint import Fingerprint
from sam2_fast.types import Features
from sam2_fast.video.session import VideoSession

BATCH = 4
"""Frames that are encoded together. Twice as many are held at most: 8 MB of features each in bfloat16 at 1024 pixels."""
READS = 2
"""Frames that are read ahead for each one that is tracked, until a batch is ready."""


class Ahead:
    """One pass over the frames of a session. Without `graphs`, or where they cannot record, frames are encoded one by one, when they are
    asked for."""

    def __init__(self, graphs: Graphs | None = None, order: range = range(0)) -> None:
        """order: the frames to come, as far as they are known; empty for streams."""
        self.graphs = graphs
        self._order = order
        self._read = -1  # the place in `order` up to which frames were read
        self._images: dict[int, Tensor] = {}  # [1, 3, S, S] each, read and not encoded, made on the lane
        self._encoded: dict[int, tuple[Features, Any]] = {}  # and the mark behind which they are there
        self._lane: Lane | None = None
        self._checked: tuple[Graphs, Fingerprint] | None = None
        self._is_checked = False

    def begin(self) -> None:
        """The caller had control: what is known of the model and of the circumstances may have changed."""
        self._is_checked = False

    def recording(self, model: Sam2) -> tuple[Graphs, Fingerprint] | None:
        """What records the work of `model`, and what the model is now but for its image encoder; None where nothing can.

        Checked once after `begin`.
        """
        if not self._is_checked:
            graphs = self.graphs
            allowed = graphs is not None and graphs.refuses(model, model.no_mem_embed) is None
            self._checked = (graphs, graphs.current(model, encoder=False)) if graphs is not None and allowed else None
            self._is_checked = True
        return self._checked

    def features(self, model: Sam2, session: VideoSession, frame: int) -> Features:
        """Features of one frame, [1, ...], for the current stream."""
        recording = self.recording(model)
        if recording is None:
            pixels, following = session.frames[frame], self._place(frame) + 1
            if 0 < following < len(self._order):
                session.frames.read_ahead(self._order[following])
            return model.encode_image(frame_input(pixels, model.config.image_size, session.device)[None])
        self._forget(frame)
        if frame in self._encoded:
            assert self._lane is not None
            found, mark = self._encoded.pop(frame)
            self._lane.join(mark, found)
            return found
        if frame in self._images:
            assert self._lane is not None
            image = self._images.pop(frame)
            self._lane.join(self._lane.mark(), [image])
        else:
            image = frame_input(session.frames[frame], model.config.image_size, session.device)[None]
        return recording[0].encode(model, image)

    def advance(self, model: Sam2, session: VideoSession, frame: int) -> None:
        """Once `frame` is under way: read some of the frames to come, and encode those that make a batch.

        A frame that cannot be read is left alone until it is asked for.
        """
        recording, place = self.recording(model), self._place(frame)
        if recording is None or place < 0:
            return
        graphs = recording[0]
        lane = self._lane = self._lane or Lane(session.device)
        self._read = max(self._read, place)
        for _ in range(READS):
            following = self._read + 1
            if following >= len(self._order) or len(self._images) + len(self._encoded) >= 2 * BATCH:
                break
            try:
                pixels = session.frames[self._order[following]]
            except (LookupError, OSError, ValueError):
                break
            with lane.enter():
                self._images[self._order[following]] = frame_input(pixels, model.config.image_size, session.device)[None]
            self._read = following
            if following + 1 < len(self._order):
                session.frames.read_ahead(self._order[following + 1])
        if len(self._images) >= BATCH:
            members, checked = list(self._images)[:BATCH], graphs.current(model)
            with lane.enter((checked, Cache.computations)):
                features = graphs.encode(model, torch.cat([self._images.pop(f) for f in members]), checked)
            mark = lane.mark()
            self._encoded |= {f: (features.image(i), mark) for i, f in enumerate(members)}

    def _place(self, frame: int) -> int:
        return self._order.index(frame) if frame in self._order else -1

    def _forget(self, frame: int) -> None:
        """What the pass went by without asking for it."""
        first = max(self._place(frame), 0)
        for held in (self._images, self._encoded):
            for passed in [f for f in held if self._place(f) < first]:
                del held[passed]
