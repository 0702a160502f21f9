"""A video being segmented: frames, objects, and what each object has seen. State only; the tracker computes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from sam2_fast.memory import MemoryBank
from sam2_fast.types import Features, FrameMemory, Points

Keep = Literal["all", "reachable"]


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


class StreamFrames:
    """Frames that the caller pushes one by one; only the newest few are held."""

    def __init__(self, window: int = 8) -> None:
        self._held: OrderedDict[int, np.ndarray] = OrderedDict()
        self._window = window
        self.pushed = 0
        self.height = self.width = 0
        self.num_frames: int | None = None

    def check(self, frame: np.ndarray) -> None:
        """Raise ValueError where a frame's size differs from the first one's."""
        if self.pushed and frame.shape[:2] != (self.height, self.width):
            raise ValueError(f"frame {self.pushed}: expected {self.width} x {self.height} pixels, got {frame.shape[1]} x {frame.shape[0]}")

    def push(self, frame: np.ndarray) -> int:
        """Add a frame, uint8 [H, W, 3]; returns its number."""
        self.height, self.width = frame.shape[:2]
        self._held[self.pushed] = frame
        self.pushed += 1
        return self.pushed - 1

    def read_ahead(self, index: int) -> None:
        """Frames are pushed: there is nothing to read."""

    def unpush(self) -> None:
        """Take the newest frame back."""
        self.pushed -= 1
        del self._held[self.pushed]

    def trim(self) -> None:
        """Forget frames beyond the window."""
        while len(self._held) > self._window:
            self._held.popitem(last=False)

    def __getitem__(self, index: int) -> np.ndarray:
        if index not in self._held:
            held = f"{min(self._held)}..{max(self._held)}" if self._held else "none"
            raise IndexError(f"frame {index} of the stream is not held any more (held: {held}); prompt one of the newest frames")
        return self._held[index]


@dataclass(frozen=True)
class Prompt:
    """What the user said of one object on one frame: points (a box being two of them) or a mask [1, 1, S, S]."""

    points: Points | None = None
    mask: Tensor | None = None


@dataclass
class ObjectTrack:
    """One object: its prompts, previews that are not committed yet, its memories, and the frames propagation passed.

    passed: frame -> direction (+1, -1). A prompt on a passed frame corrects with memory; on another one it starts afresh.
    """

    prompts: dict[int, Prompt] = field(default_factory=dict)
    previews: dict[int, FrameMemory] = field(default_factory=dict)
    bank: MemoryBank = field(default_factory=MemoryBank)
    passed: dict[int, int] = field(default_factory=dict)

    def shown(self, frame: int) -> FrameMemory | None:
        """The newest result for a frame: a preview, else what is remembered."""
        return self.previews.get(frame) or self.bank.get(frame)

    @property
    def paused(self) -> bool:
        """Whether there is nothing to track from."""
        return not self.bank.prompted


@dataclass
class VideoSession:
    """State of one video. Objects are kept in the order in which they were added; removing one is one `del`.

    keep: "all" remembers every frame (corrections anywhere, 1.3 MB an object and frame in float32 at 1024 pixels); "reachable"
    only what later frames can attend to, so that memory does not grow with the video.
    """

    frames: Frames
    device: torch.device
    storage: torch.device
    keep: Keep = "all"
    objects: dict[Hashable, ObjectTrack] = field(default_factory=dict)
    features: tuple[int, Features] | None = None
    resets: int = 0
    _busy: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def num_frames(self) -> int | None:
        """Frames in the video; None for a stream."""
        return self.frames.num_frames

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the video, pixels."""
        return self.frames.height, self.frames.width

    @property
    def obj_ids(self) -> list[Hashable]:
        """Ids in the order of the masks that every call returns."""
        return list(self.objects)

    @contextmanager
    def exclusive(self, verb: str) -> Iterator[None]:
        """Guard one call. Sessions are for one thread at a time; a second one raises RuntimeError instead of waiting."""
        if not self._busy.acquire(blocking=False):
            raise RuntimeError(f"{verb}: this session is in use by another call; give every thread a session of its own")
        try:
            yield
        finally:
            self._busy.release()

    def object(self, obj_id: Hashable) -> ObjectTrack:
        """The track of an id that exists; ValueError that names the ids otherwise."""
        if obj_id not in self.objects:
            raise ValueError(f"obj_id: {obj_id!r} is unknown; existing ids: {self.obj_ids}")
        return self.objects[obj_id]

    def reset(self) -> None:
        """Forget all objects; running propagations end with an error."""
        self.objects.clear()
        self.resets += 1
