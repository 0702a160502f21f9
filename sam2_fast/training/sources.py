"""Where training clips come from. A clip is a function of its seed alone: any process can draw any
clip, in any order.
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
"""Videos that are looked at for a clip that shows an object, before giving up."""


class Source(Protocol):
    """Videos or images. A training step takes all its clips from one source."""

    @property
    def share(self) -> float:
        """How often it is chosen, next to the other sources' shares."""

    @property
    def frames(self) -> int:
        """Of a clip; 1: images."""

    @property
    def batch(self) -> int:
        """Clips of a step and process."""

    def clip(self, seed: int, size: int) -> Clip:
        """Clip number `seed`, of size x size pixels. Raises ValueError where none can be had, and
        says why.
        """


@dataclass(frozen=True)
class Synthetic:
    """Clips of the synthetic world, rendered at the size that is asked for."""

    share: float = 1.0
    frames: int = 8
    batch: int = 1
    objects: int = 3  # at most
    least: float = 5e-4  # share of the image that an object covers on the first frame, at least
    backwards: float = 0.5  # how often time runs backwards
    stride: int = 1  # a clip is every k-th frame, with k from 1 to this: short clips, long ways
    length: int = 2000  # frames of the video that a clip is cut from
    world: World = field(default_factory=World)

    def __post_init__(self) -> None:
        if self.stride < 1 or self.objects < 1 or (self.frames - 1) * self.stride >= self.length:
            raise ValueError(
                f"synthetic source: expected stride and objects of 1 or more, and clips that fit "
                f"into {self.length} frames"
            )

    def clip(self, seed: int, size: int) -> Clip:
        """Frames at equal distances, and objects that are seen on the first of them."""
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
            f"clips; make the world's sizes larger"
        )
