"""A simulated annotator for training clips: frames to prompt and correct, and the prompts.

Source: SAM 2 paper, D.2; official `SAM2Train`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sam2_fast.data.clicks import sample_box_points, sample_random_points_from_errors


@dataclass(frozen=True)
class Annotator:
    """Habits of the annotator: probabilities, and the greatest numbers of frames and clicks.

    The defaults are those of the released recipe: masks 1/2, boxes 1/4, clicks 1/4.
    """

    points: float = 0.5  # a clip is prompted with clicks and boxes, not with masks
    box: float = 0.5  # such a frame begins with a box, not with a click
    prompted_frames: int = 2
    corrected_frames: int = 2  # including the prompted ones
    clicks: int = 7  # corrections of a frame
    anywhere: float = 0.1  # a correction is a random pixel of the object, right or wrong

    def __post_init__(self) -> None:
        shares = {"points": self.points, "box": self.box, "anywhere": self.anywhere}
        if wrong := {name: share for name, share in shares.items() if not 0 <= share <= 1}:
            raise ValueError(
                f"{', '.join(wrong)}: expected probabilities from 0 to 1, got "
                f"{', '.join(map(str, wrong.values()))}"
            )
        if not 1 <= self.prompted_frames <= self.corrected_frames or self.clicks < 0:
            raise ValueError(
                f"prompted_frames, corrected_frames, clicks: expected 1 or more, at least "
                f"prompted_frames, and 0 or more, got {self.prompted_frames}, "
                f"{self.corrected_frames} and {self.clicks}"
            )


class Plan(NamedTuple):
    """The prompts and corrections of one clip."""

    points: bool  # prompts are clicks and boxes; else true masks, and no corrections
    prompted: tuple[int, ...]  # frames that are prompted before any is tracked, frame 0 first
    # Frames that get clicks where the mask is wrong; all become conditioning frames.
    corrected: tuple[int, ...]
    order: tuple[int, ...]  # of computation: the prompted frames, then the others forwards


def draw_plan(rng: np.random.Generator, frames: int, annotator: Annotator | None = None) -> Plan:
    """A random plan for a clip of `frames` frames.

    A clip of one frame, an image, is always prompted with clicks or boxes.
    """
    annotator = annotator or Annotator()
    if frames < 1:
        raise ValueError(f"frames: expected 1 or more, got {frames}")
    points = frames == 1 or bool(rng.random() < annotator.points)
    # A frame that is prompted with a mask has no loss, so at least one frame stays unprompted.
    greatest = min(annotator.prompted_frames, frames if points else frames - 1)
    count = int(rng.integers(1, greatest + 1))
    prompted = (0, *_sample(rng, range(1, frames), count - 1))
    corrected: tuple[int, ...] = ()
    if points:
        total = int(rng.integers(count, min(annotator.corrected_frames, frames) + 1))
        rest = [t for t in range(frames) if t not in prompted]
        corrected = tuple(sorted((*prompted, *_sample(rng, rest, total - count))))
    return Plan(
        points, prompted, corrected, (*prompted, *(t for t in range(frames) if t not in prompted))
    )


class Hands:
    """Random numbers for the annotator of one batch.

    Habits are drawn once for the batch, positions for each clip. So the positions for a clip do not
    depend on the other clips of the batch.
    """

    def __init__(
        self, rng: np.random.Generator, seeds: Sequence[int], owner: Sequence[int]
    ) -> None:
        """rng: for habits. seeds: one for each clip. owner: the clip of each object."""
        self.habits = rng
        self._owner = list(owner)
        self._clips = [np.random.default_rng([seed, 1]) for seed in seeds]

    def uniform(self, *shape: int) -> Tensor:
        """[N, *shape] uniform numbers from 0 to 1."""
        return torch.from_numpy(np.stack([self._clips[clip].random(shape) for clip in self._owner]))


def first_prompt(hands: Hands, truth: Tensor, annotator: Annotator) -> tuple[Tensor, Tensor]:
    """A box as two corners, or a click anywhere on each object: [N, P, 2] pixels, [N, P] labels.

    truth: [N, 1, H, W] bool.
    """
    if hands.habits.random() < annotator.box:
        return sample_box_points(truth, draws=hands.uniform(1, 4).to(truth.device, torch.float32))
    return sample_random_points_from_errors(truth, None, draws=hands.uniform(1).to(truth.device))


def correction(
    hands: Hands, truth: Tensor, masks: Tensor, annotator: Annotator
) -> tuple[Tensor, Tensor]:
    """A click for each object where its mask is wrong: [N, 1, 2] pixels and [N, 1] labels.

    truth, masks: [N, 1, H, W] bool.
    """
    anywhere = hands.habits.random() < annotator.anywhere
    return sample_random_points_from_errors(
        truth, None if anywhere else masks, draws=hands.uniform(1).to(truth.device)
    )


def _sample(rng: np.random.Generator, frames: range | list[int], count: int) -> tuple[int, ...]:
    return (
        tuple(sorted(int(t) for t in rng.choice(list(frames), count, replace=False)))
        if count > 0
        else ()
    )
