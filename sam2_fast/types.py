"""Data types that are passed between packages; plain data, which imports no other package.

Sizes: S is the model's image size in pixels, h = w = S / 16 is the low-resolution grid in tokens, B
is a batch of images or objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class Features(NamedTuple):
    """Features of B images from the feature pyramid.

    The decoder's 1 x 1 projections of the two fine levels are already applied.
    """

    low: Tensor  # [B, 256, h, w]
    mid: Tensor  # [B, 64, 2h, 2w]
    high: Tensor  # [B, 32, 4h, 4w]

    def image(self, index: int) -> Features:
        """The features of one image of the batch, as a batch of one."""
        return Features(*(level[index : index + 1] for level in self))


class Prediction(NamedTuple):
    """Outputs of the mask decoder: M masks of each of B objects."""

    logits: Tensor  # [B, M, 4h, 4w] float32 mask logits
    iou: Tensor  # [B, M] predicted IoU
    tokens: Tensor  # [B, M or 1, 256] output tokens that become object pointers
    presence: Tensor  # [B, 1] logit that the object is in the frame


class Points(NamedTuple):
    """Click and box prompts of B objects in model pixels.

    Labels: 1 positive, 0 negative, 2 and 3 box corners, -1 padding.
    A padding point is a token that the model was trained with, and it changes the mask. Points that
    only fill up a batch of prompts of different lengths are False in `present`: no token attends to
    them.
    """

    coords: Tensor  # [B, P, 2] float32 (x, y) in pixels of the S x S image
    labels: Tensor  # [B, P] int32
    present: Tensor | None = None  # [B, P] bool; None: all


class NoPoints(NamedTuple):
    """No click and no box for `objects` objects: two padding points each, as in training."""

    objects: int


class Recall(NamedTuple):
    """The frames that one object attends to, as integers.

    Rows are indices into the temporal table; ages are in frames.
    """

    maps: tuple[int, ...]  # frame numbers, prompted ones first
    rows: tuple[int, ...]  # one for each map
    pointers: tuple[int, ...]  # frame numbers
    ages: tuple[int, ...]  # one for each pointer, in the direction of tracking
    longest: int  # the age that is scaled to 1


class RecallLimits(NamedTuple):
    """Limits on the memories that a frame attends to: arguments of `MemoryBank.recall`."""

    num_maps: int
    num_pointers: int
    stride: int
    max_prompted: int
    past_pointers_only: bool
    use_pointers: bool


class Remembered(NamedTuple):
    """The memories that N objects attend to on one frame, one sequence for each object."""

    maps: Sequence[Sequence[Tensor]]  # [h * w, 64] each
    rows: Sequence[Sequence[int]]  # of the temporal table, one for each map
    pointers: Sequence[Sequence[Tensor]]  # [256] each
    ages: Sequence[Sequence[int]]  # in frames, one for each pointer
    longest: int  # the age that is scaled to 1


class Tracked(NamedTuple):
    """The results of N objects on one tracked frame."""

    logits: Tensor  # [N, 1, 4h, 4w] float32
    pointer: Tensor  # [N, 256]
    presence: Tensor  # [N, 1]
    maps: Tensor  # [N, h * w, 64] memory maps of this frame
