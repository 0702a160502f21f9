"""The frames of a session: pushed by the caller, or assigned to `inference_state["images"]`."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, SupportsIndex

import numpy as np
import torch
from torch import Tensor

from sam2_fast.io.images import as_rgb_uint8
from sam2_fast.io.transforms import frame_input
from sam2_fast.video.journal import Journal


class Frames(Protocol):
    """A source of frames: those of `io.video`, `StreamFrames`, or `AssignedFrames`."""

    @property
    def num_frames(self) -> int | None:
        """Number of frames, or None while it is unknown."""

    @property
    def height(self) -> int:
        """Pixels."""

    @property
    def width(self) -> int:
        """Pixels."""

    def __getitem__(self, index: int) -> np.ndarray | Tensor:
        """Frame `index`: uint8 [H, W, 3] RGB, or model input [3, S, S] floating point."""

    def read_ahead(self, index: int) -> None:
        """Start to read frame `index`, which will be requested next."""


def model_input(frame: np.ndarray | Tensor, size: int, device: torch.device) -> Tensor:
    """A frame of `Frames` as model input [3, size, size] float32 on `device`.

    Raises ValueError for model input of another size.
    """
    if not isinstance(frame, Tensor):
        return frame_input(frame, size, device)
    if tuple(frame.shape) != (3, size, size):
        raise ValueError(
            f"images: expected normalised frames [3, {size}, {size}] or pictures [H, W, 3] uint8, "
            f"got {[*frame.shape]} {frame.dtype}"
        )
    return frame.to(device).float()


def own_pixels(frame: Any) -> np.ndarray:
    """A picture of any kind that `set_image` accepts as uint8 [H, W, 3], in memory of its own."""
    pixels = as_rgb_uint8(frame)
    if isinstance(frame, Tensor):
        return pixels.copy() if frame.device.type == "cpu" else pixels
    shared = isinstance(frame, np.ndarray) and np.may_share_memory(pixels, frame)
    return pixels.copy() if shared else pixels


class StreamFrames:
    """Frames that the caller pushes one by one; only the newest `window` frames are stored.

    pushed: number of frames so far.
    """

    def __init__(self, window: int = 8) -> None:
        self._frames: dict[int, np.ndarray] = {}
        self.window = window
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

    def __deepcopy__(self, memo: dict[int, Any]) -> StreamFrames:
        copied = StreamFrames(self.window)
        vars(copied).update(vars(self) | {"_frames": self._frames.copy()})
        return copied

    def push(self, frame: np.ndarray, journal: Journal | None = None) -> int:
        """Add a frame, uint8 [H, W, 3], and remove the oldest one if there are too many.

        Returns the number of the frame. All attributes change at once.
        """
        height, width = frame.shape[:2]
        frames = {**self._frames, self.pushed: frame}
        newest = dict([*frames.items()][-self.window :])
        (journal or Journal()).assign(
            self, _frames=newest, pushed=self.pushed + 1, height=height, width=width
        )
        return self.pushed - 1

    def read_ahead(self, index: int) -> None:
        """Does nothing: frames are pushed."""

    def __getitem__(self, index: int) -> np.ndarray:
        if index not in self._frames:
            stored = f"{min(self._frames)}..{max(self._frames)}" if self._frames else "none"
            raise IndexError(
                f"frame {index} of the stream is not stored any more (stored: {stored}); prompt "
                "one of the newest frames"
            )
        return self._frames[index]


class FrameImages(Sequence[Tensor]):
    """`inference_state["images"]`: frames as model input, [3, S, S] float32, read when indexed.

    Slices, and the functions of torch such as `torch.cat`, read all the frames they need into one
    tensor. Frames can be replaced: `images[3] = frame`.

    source: of the frames; size: S, pixels; device: of the results.
    """

    def __init__(self, source: Frames, size: int, device: torch.device) -> None:
        self.source = source
        self._size = size
        self._device = device
        self.replaced: dict[int, Any] = {}
        """Frames that the caller has assigned, by number."""

    def __len__(self) -> int:
        count = self.source.num_frames
        if count is None:
            raise TypeError("images: the number of frames of the video is not known yet")
        return count

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            chosen = range(len(self))[index]
            if not chosen:
                return torch.empty(0, 3, self._size, self._size, device=self._device)
            return torch.stack([self[i] for i in chosen])
        number = self._number(index)
        frame = self.replaced.get(number)
        frame = self.source[number] if frame is None else _as_frame(frame)
        return model_input(frame, self._size, self._device)

    def __setitem__(self, index: SupportsIndex, frame: Any) -> None:
        self.replaced[self._number(index)] = frame

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    @property
    def shape(self) -> torch.Size:
        """[frames, 3, S, S]."""
        return torch.Size((len(self), 3, self._size, self._size))

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        """All frames as one tensor, converted as by `Tensor.to`."""
        images: Tensor = self[:]
        return images.to(*args, **kwargs)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        return func(*_with_tensors(args), **_with_tensors(kwargs or {}))

    def _number(self, index: SupportsIndex) -> int:
        number = operator.index(index)
        count = self.source.num_frames
        return number + count if number < 0 and count is not None else number


class AssignedFrames:
    """Frames that the caller has assigned to `inference_state["images"]`.

    images: an indexable object of frames: model input [3, S, S] in a floating-point tensor, or
        pictures of any kind that `set_image` accepts.
    """

    def __init__(self, images: Any, height: int, width: int) -> None:
        self.images = images
        self.height = height
        self.width = width

    @property
    def num_frames(self) -> int | None:
        """Number of frames, or None if the object has no length."""
        return len(self.images) if hasattr(self.images, "__len__") else None

    def __getitem__(self, index: int) -> np.ndarray | Tensor:
        return _as_frame(self.images[index])

    def read_ahead(self, index: int) -> None:
        """Does nothing: the object decides when frames are read."""


def _as_frame(frame: Any) -> np.ndarray | Tensor:
    is_input = isinstance(frame, Tensor) and frame.is_floating_point() and frame.shape[0] == 3
    return frame if is_input else as_rgb_uint8(frame)


def _with_tensors(value: Any) -> Any:
    """Arguments of a function of torch, with tensors instead of `FrameImages`."""
    if isinstance(value, FrameImages):
        return value[:]
    if isinstance(value, list | tuple):
        return type(value)(_with_tensors(item) for item in value)
    if isinstance(value, Mapping):
        return {key: _with_tensors(item) for key, item in value.items()}
    return value
