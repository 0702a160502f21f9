"""The state of a video that is segmented: frames, objects, and the memories of each object.

It computes nothing; the tracker does.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sam2_fast.memory import MemoryBank
from sam2_fast.types import FrameMemory, Points, Preview
from sam2_fast.video.lookahead import FeatureCache, Frames

Keep = Literal["all", "reachable"]


class StreamFrames:
    """Frames that the caller pushes one by one; only the newest `window` frames are stored."""

    def __init__(self, window: int = 8) -> None:
        self._frames: OrderedDict[int, np.ndarray] = OrderedDict()
        self._window = window
        self.pushed = 0
        self.height = self.width = 0
        self.num_frames: int | None = None

    def check(self, frame: np.ndarray) -> None:
        """Raise ValueError if the size of a frame differs from that of the first one."""
        if self.pushed and frame.shape[:2] != (self.height, self.width):
            raise ValueError(
                f"frame {self.pushed}: expected {self.width} x {self.height} pixels, got "
                f"{frame.shape[1]} x {frame.shape[0]}"
            )

    def push(self, frame: np.ndarray) -> int:
        """Add a frame, uint8 [H, W, 3]; returns its number."""
        self.height, self.width = frame.shape[:2]
        self._frames[self.pushed] = frame
        self.pushed += 1
        return self.pushed - 1

    def read_ahead(self, index: int) -> None:
        """Does nothing: frames are pushed."""

    def unpush(self) -> None:
        """Remove the newest frame."""
        self.pushed -= 1
        del self._frames[self.pushed]

    def trim(self) -> None:
        """Remove frames that are older than the window."""
        while len(self._frames) > self._window:
            self._frames.popitem(last=False)

    def __getitem__(self, index: int) -> np.ndarray:
        if index not in self._frames:
            stored = f"{min(self._frames)}..{max(self._frames)}" if self._frames else "none"
            raise IndexError(
                f"frame {index} of the stream is not stored any more (stored: {stored}); prompt "
                "one of the newest frames"
            )
        return self._frames[index]


@dataclass(frozen=True)
class Prompt:
    """The user's prompt for one object on one frame: points or a mask.

    points: a box is two of them. mask: [1, 1, S, S].
    """

    points: Points | None = None
    mask: Tensor | None = None


@dataclass
class ObjectTrack:
    """One object: prompts, previews that are not committed yet, memories, and passed frames.

    passed: frames that propagation has tracked -> direction (+1, -1). A prompt on one of them is
        decoded with the object's memories, a prompt on another frame without them.
    """

    prompts: dict[int, Prompt] = field(default_factory=dict)
    previews: dict[int, Preview] = field(default_factory=dict)
    bank: MemoryBank = field(default_factory=MemoryBank)
    passed: dict[int, int] = field(default_factory=dict)

    def newest_result(self, frame: int) -> Preview | FrameMemory | None:
        """The newest result for a frame: its preview, else its memory, or None."""
        return self.previews.get(frame) or self.bank.get(frame)

    def with_earlier_points(self, frame: int, points: Points) -> Points:
        """The earlier points of the frame, if any, then `points`."""
        old = self.prompts.get(frame)
        if old is None or old.points is None:
            return points
        coords = torch.cat([old.points.coords, points.coords], 1)
        return Points(coords, torch.cat([old.points.labels, points.labels], 1))

    @property
    def paused(self) -> bool:
        """Whether the object has no prompted frame, and so cannot be tracked."""
        return not self.bank.prompted


@dataclass(repr=False)
class VideoSession:
    """State of one video.

    objects: by id, in the order in which they were added.
    keep: "all" stores the memories of every frame, so that any frame can be corrected (1.3 MB for
        each object and frame, in float32 at 1024 pixels); "reachable" stores only those that later
        frames can attend to, so that memory does not grow with the video.
    """

    frames: Frames
    device: torch.device
    storage: torch.device
    keep: Keep = "all"
    objects: dict[Hashable, ObjectTrack] = field(default_factory=dict)
    resets: int = 0
    features: FeatureCache = field(init=False)
    map_position: Tensor | None = None
    """Positions of memory maps, [1, 64, h, w], if not those of the model (official `constants`)."""
    _busy: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.features = FeatureCache(self.frames, self.device)

    def __repr__(self) -> str:
        """One line: frames and their size, objects, and the prompted frames."""
        count = "a stream" if self.num_frames is None else f"{self.num_frames} frames"
        height, width = self.size
        prompted = sorted({frame for track in self.objects.values() for frame in track.prompts})
        name = type(self).__name__
        return (
            f"{name}({count} of {width} x {height}, objects {self.obj_ids}, "
            f"prompted on {prompted}, keep={self.keep!r}, {self.device})"
        )

    @property
    def num_frames(self) -> int | None:
        """Number of frames of the video, or None for a stream."""
        return self.frames.num_frames

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the video, pixels."""
        return self.frames.height, self.frames.width

    @property
    def obj_ids(self) -> list[Hashable]:
        """Ids of the objects, in the order of the masks that every call returns."""
        return list(self.objects)

    @contextmanager
    def exclusive(self, verb: str) -> Iterator[None]:
        """Lock the session for one call, named `verb` in errors.

        A session is for one thread at a time: a second call raises RuntimeError instead of waiting.
        """
        if not self._busy.acquire(blocking=False):
            raise RuntimeError(
                f"{verb}: this session is in use by another call; give every thread a session of "
                "its own"
            )
        try:
            yield
        finally:
            self._busy.release()

    def object(self, obj_id: Hashable) -> ObjectTrack:
        """The track of an object. Raises ValueError, with the existing ids, for an unknown id."""
        if obj_id not in self.objects:
            raise ValueError(f"obj_id: {obj_id!r} is unknown; existing ids: {self.obj_ids}")
        return self.objects[obj_id]

    def require_objects(self) -> None:
        """Raise RuntimeError, with the official message, if there is no object."""
        if not self.objects:
            raise RuntimeError(
                "No input points or masks are provided for any object; please add inputs first."
            )

    def first_prompted(self) -> int:
        """The first frame with a committed prompt. Raises RuntimeError if there is none."""
        prompted = [frame for track in self.objects.values() for frame in track.bank.prompted]
        if not prompted:
            raise RuntimeError("no object has a prompt: add points, a box or a mask first")
        return min(prompted)

    def order(self, start: int, limit: int | None, step: int) -> Iterable[int]:
        """The frames of a propagation, in order; endless if the number of frames is unknown.

        limit: number of frames after the first one; None: to the end. step: +1 or -1.
        """
        if step < 0:
            last = -1 if limit is None else max(start - limit, 0) - 1
            return range(start, last, -1) if start > 0 else range(0)
        if self.num_frames is None:
            return count(start) if limit is None else range(start, start + limit + 1)
        end = self.num_frames if limit is None else min(start + limit + 1, self.num_frames)
        return range(start, end)

    def has_frame(self, frame: int) -> bool:
        """Whether the frame exists; if the length of the source is unknown, the frame is read."""
        if self.num_frames is not None:
            return True
        try:
            self.frames[frame]
        except IndexError:
            return False
        return True

    def reset(self) -> None:
        """Remove all objects; running propagations end with an error."""
        self.objects.clear()
        self.resets += 1
