"""A simulated annotator for training clips: which frames are prompted and corrected, and with what
(SAM 2 paper, D.2; `SAM2Train`).
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
    """Habits: probabilities, and the most frames and clicks. The defaults are the released
    recipe's: masks 1/2, boxes 1/4, clicks 1/4.
    """

    points: float = 0.5  # a clip is prompted with clicks and boxes, not with masks
    box: float = 0.5  # such a frame begins with a box, not with a click
    prompted_frames: int = 2
    corrected_frames: int = 2  # prompted ones among them
    clicks: int = 7  # corrections of a frame
    anywhere: float = 0.1  # a correction is any place on the object, whatever is wrong

    def __post_init__(self) -> None:
        shares = {"points": self.points, "box": self.box, "anywhere": self.anywhere}
        if wrong := {name: share for name, share in shares.items() if not 0 <= share <= 1}:
            raise ValueError(
                f"{', '.join(wrong)}: expected probabilities, got "
                f"{', '.join(map(str, wrong.values()))}"
            )
        if not 1 <= self.prompted_frames <= self.corrected_frames or self.clicks < 0:
            raise ValueError(
                f"prompted_frames, corrected_frames, clicks: expected 1 or more, as many or more, "
                f"0 or more, got {self.prompted_frames}, "
                f"{self.corrected_frames} and {self.clicks}"
            )


class Plan(NamedTuple):
    """What will be done with the frames of one clip."""

    points: bool  # clicks and boxes; else the true mask, and no corrections
    prompted: tuple[int, ...]  # frames that are prompted before anything is tracked, frame 0 first
    # Frames that get clicks where the mask is wrong; all become conditioning frames.
    corrected: tuple[int, ...]
    order: tuple[int, ...]  # in which frames are computed: prompted ones, then the others forwards


def draw_plan(rng: np.random.Generator, frames: int, annotator: Annotator | None = None) -> Plan:
    """One draw for a clip of `frames` frames. A clip of one frame, an image, is always prompted
    with clicks or boxes.
    """
    annotator = annotator or Annotator()
    if frames < 1:
        raise ValueError(f"frames: expected 1 or more, got {frames}")
    points = frames == 1 or bool(rng.random() < annotator.points)
    # Of masks nothing is learned: a frame is left.
    most = min(annotator.prompted_frames, frames if points else frames - 1)
    count = int(rng.integers(1, most + 1))
    prompted = (0, *_some(rng, range(1, frames), count - 1))
    corrected: tuple[int, ...] = ()
    if points:
        total = int(rng.integers(count, min(annotator.corrected_frames, frames) + 1))
        rest = [t for t in range(frames) if t not in prompted]
        corrected = tuple(sorted((*prompted, *_some(rng, rest, total - count))))
    return Plan(
        points, prompted, corrected, (*prompted, *(t for t in range(frames) if t not in prompted))
    )


class Hands:
    """Random numbers of a batch: habits are drawn for all of it, places by clip. What is drawn for
    a clip is the same in any batch.
    """

    def __init__(
        self, rng: np.random.Generator, seeds: Sequence[int], owner: Sequence[int]
    ) -> None:
        """rng: for habits; seeds: one for each clip; owner: of each object its clip."""
        self.habits, self._owner = rng, list(owner)
        self._clips = [np.random.default_rng([seed, 1]) for seed in seeds]

    def places(self, *shape: int) -> Tensor:
        """[N, *shape] uniform numbers of 0 to 1."""
        return torch.from_numpy(np.stack([self._clips[clip].random(shape) for clip in self._owner]))


def first_prompt(hands: Hands, truth: Tensor, annotator: Annotator) -> tuple[Tensor, Tensor]:
    """A box, as its two corners, or a click anywhere on each object. truth: [N, 1, H, W] bool ->
    [N, P, 2] pixels and [N, P] labels.
    """
    if hands.habits.random() < annotator.box:
        return sample_box_points(truth, draws=hands.places(1, 4).to(truth.device, torch.float32))
    return sample_random_points_from_errors(truth, None, draws=hands.places(1).to(truth.device))


def correction(
    hands: Hands, truth: Tensor, found: Tensor, annotator: Annotator
) -> tuple[Tensor, Tensor]:
    """A click of each object where its mask is wrong. truth, found: [N, 1, H, W] bool -> [N, 1, 2]
    pixels and [N, 1] labels.
    """
    anywhere = hands.habits.random() < annotator.anywhere
    return sample_random_points_from_errors(
        truth, None if anywhere else found, draws=hands.places(1).to(truth.device)
    )


def _some(rng: np.random.Generator, frames: range | list[int], count: int) -> tuple[int, ...]:
    return (
        tuple(sorted(int(t) for t in rng.choice(list(frames), count, replace=False)))
        if count > 0
        else ()
    )
