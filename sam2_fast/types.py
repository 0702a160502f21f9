"""The nouns that the rooms hand to each other. Plain data: no behaviour, no imports from above.

Sizes: S is the model's image size in pixels, h = w = S / 16 the low-resolution grid in tokens, B a
    batch (images or objects).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class Features(NamedTuple):
    """Image features of B images, after the feature pyramid (and the decoder's own 1x1 projections
    of its two fine levels).
    """

    low: Tensor  # [B, 256, h, w]
    mid: Tensor  # [B, 64, 2h, 2w]
    high: Tensor  # [B, 32, 4h, 4w]

    def image(self, index: int) -> Features:
        """The features of one image of the batch, as a batch of one."""
        return Features(*(level[index : index + 1] for level in self))


class Prediction(NamedTuple):
    """What the mask decoder says of B objects, M masks each."""

    logits: Tensor  # [B, M, 4h, 4w] float32 mask logits
    iou: Tensor  # [B, M] predicted IoU
    tokens: Tensor  # [B, M or 1, 256] output tokens that become object pointers
    presence: Tensor  # [B, 1] logit that the object is in the frame


class Points(NamedTuple):
    """Click and box prompts of B objects in model pixels. Labels: 1 positive, 0 negative, 2 and 3
    box corners, -1 padding.

    Padding is a token that the model was trained with and that changes the mask. Points that only
    fill up a batch of prompts of different lengths are marked in `present` instead: nothing attends
    to them.
    """

    coords: Tensor  # [B, P, 2] float32 (x, y) in pixels of the S x S image
    labels: Tensor  # [B, P] int32
    present: Tensor | None = None  # [B, P] bool; None: all


class NoPoints(NamedTuple):
    """No click and no box for any of `objects` objects: two padding points each, as the model was
    trained with.
    """

    objects: int


@dataclass(frozen=True)
class Preview:
    """What a prompt gives for one object on one frame, until it is committed to memory."""

    pointer: Tensor  # [256]
    presence: Tensor  # [1] logit
    logits: Tensor  # [1, 4h, 4w] float32, holes filled

    def committed(self, map: Tensor) -> FrameMemory:  # noqa: A002 - what FrameMemory calls it
        """As a memory, with the memory map [h * w, 64] that was encoded from it."""
        return FrameMemory(self.pointer, self.presence, map, self.logits)


@dataclass(frozen=True)
class FrameMemory:
    """What one object remembers of one frame. `map` is None once it is too old
    to be attended to.
    """

    pointer: Tensor  # [256]
    presence: Tensor  # [1] logit
    map: Tensor | None = None  # [h * w, 64] memory tokens
    logits: Tensor | None = None  # [1, 4h, 4w] float32, holes filled


class Recall(NamedTuple):
    """Which frames one object attends to: integers only. Rows index the temporal table; ages are in
    frames.
    """

    maps: tuple[int, ...]  # frame numbers, prompted ones first
    rows: tuple[int, ...]  # one per map
    pointers: tuple[int, ...]  # frame numbers
    ages: tuple[int, ...]  # one per pointer, signed by direction
    longest: int  # the age that is scaled to 1


class RecallLimits(NamedTuple):
    """How much a frame attends to, as `MemoryBank.recall` takes it."""

    num_maps: int
    num_pointers: int
    stride: int
    max_prompted: int


class Remembered(NamedTuple):
    """What N objects attend to on one frame, a list for each."""

    maps: Sequence[Sequence[Tensor]]  # [h * w, 64] each
    rows: Sequence[Sequence[int]]  # of the temporal table, one a map
    pointers: Sequence[Sequence[Tensor]]  # [256] each
    ages: Sequence[Sequence[int]]  # frames, one a pointer
    longest: int  # the age that is scaled to 1


class Tracked(NamedTuple):
    """What a frame says of N objects."""

    logits: Tensor  # [N, 1, 4h, 4w] float32
    pointer: Tensor  # [N, 256]
    presence: Tensor  # [N, 1]
    maps: Tensor  # [N, h * w, 64] memory of this frame
