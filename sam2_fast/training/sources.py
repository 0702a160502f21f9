"""Sources of training clips.

A clip is a function of its seed alone, so any process can draw any clip, in any order.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch

from sam2_fast.data.synthetic import SyntheticVideo, World
from sam2_fast.io.transforms import normalize_frame
from sam2_fast.training.batches import Clip

TRIES = 100
"""Number of clips that are tried to get one that shows an object."""


class Source(Protocol):
    """Videos or images. All clips of a training step come from one source."""

    @property
    def share(self) -> float:
        """How often the source is chosen, relative to the shares of the other sources."""

    @property
    def frames(self) -> int:
        """Frames of a clip; 1 for images."""

    @property
    def batch(self) -> int:
        """Clips per step and process."""

    def clip(self, seed: int, size: int) -> Clip:
        """The clip of number `seed`, of size x size pixels. Raises ValueError if there is none."""


@dataclass(frozen=True)
class Synthetic:
    """Clips of synthetic videos, rendered at the requested size."""

    share: float = 1.0
    frames: int = 8
    batch: int = 1
    objects: int = 3  # greatest number of objects in a clip
    least: float = 5e-4  # smallest fraction of the first frame that an object covers
    backwards: float = 0.5  # probability that time runs backwards
    stride: int = 1  # a clip takes every k-th frame, with a random k from 1 to `stride`
    length: int = 2000  # frames of the video that a clip is cut from
    world: World = field(default_factory=World)

    def __post_init__(self) -> None:
        if self.stride < 1 or self.objects < 1 or (self.frames - 1) * self.stride >= self.length:
            raise ValueError(
                f"synthetic source: expected stride and objects of 1 or more, and clips that fit "
                f"into {self.length} frames"
            )

    def clip(self, seed: int, size: int) -> Clip:
        """Equally spaced frames, and objects that are visible on the first of them."""
        world = replace(self.world, height=size, width=size)
        for attempt in range(TRIES):
            rng = np.random.default_rng([seed, attempt])
            video = SyntheticVideo(int(rng.integers(2**31)), self.length, world)
            stride = int(rng.integers(1, self.stride + 1)) if self.stride > 1 else 1
            reach = (self.frames - 1) * stride + 1
            start = int(rng.integers(self.length - reach + 1))
            times = list(range(start, start + reach, stride))
            if rng.random() < self.backwards:
                times.reverse()
            first = video[times[0]]
            seen = [i for i, mask in first.masks().items() if mask.mean() >= self.least]
            if seen:
                chosen = rng.permutation(seen)[: self.objects]
                shown = [first, *(video[t] for t in times[1:])]
                images = torch.stack(
                    [normalize_frame(torch.from_numpy(frame.image)) for frame in shown]
                )
                return Clip(
                    images,
                    torch.from_numpy(
                        np.stack([[frame.labels == i for i in chosen] for frame in shown])
                    ),
                    seed,
                )
        raise ValueError(
            f"synthetic source: no object covers {self.least:g} of the first frame in {TRIES} "
            f"clips; increase `size` of the world"
        )
