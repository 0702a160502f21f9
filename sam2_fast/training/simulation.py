"""A simulated annotator for training clips: which frames are prompted and corrected, and with what (SAM 2 paper, D.2; `SAM2Train`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor

from sam2_fast.click_sampling import sample_box_points, sample_random_points_from_errors


@dataclass(frozen=True)
class Annotator:
    """Habits: probabilities, and the most frames and clicks. The defaults are the released recipe's: masks 1/2, boxes 1/4, clicks 1/4."""

    points: float = 0.5  # a clip is prompted with clicks and boxes, not with masks
    box: float = 0.5  # such a frame begins with a box, not with a click
    prompted_frames: int = 2
    corrected_frames: int = 2  # prompted ones among them
    clicks: int = 7  # corrections of a frame
    anywhere: float = 0.1  # a correction is any place on the object, whatever is wrong

    def __post_init__(self) -> None:
        shares = {"points": self.points, "box": self.box, "anywhere": self.anywhere}
        if wrong := {name: share for name, share in shares.items() if not 0 <= share <= 1}:
            raise ValueError(f"{', '.join(wrong)}: expected probabilities, got {', '.join(map(str, wrong.values()))}")
        if not 1 <= self.prompted_frames <= self.corrected_frames or self.clicks < 0:
            raise ValueError(
                f"prompted_frames, corrected_frames, clicks: expected 1 or more, as many or more, 0 or more, got {self.prompted_frames}, "
                f"{self.corrected_frames} and {self.clicks}"
            )


class Plan(NamedTuple):
    """What will be done with the frames of one clip."""

    points: bool  # clicks and boxes; else the true mask, and no corrections
    prompted: tuple[int, ...]  # frames that are prompted before anything is tracked, frame 0 first
    corrected: tuple[int, ...]  # frames that get clicks where the mask is wrong; all become conditioning frames
    order: tuple[int, ...]  # in which frames are computed: prompted ones, then the others forwards


def draw_plan(rng: np.random.Generator, frames: int, annotator: Annotator | None = None) -> Plan:
    """One draw for a clip of `frames` frames. A clip of one frame, an image, is always prompted with clicks or boxes."""
    annotator = annotator or Annotator()
    if frames < 1:
        raise ValueError(f"frames: expected 1 or more, got {frames}")
    points = frames == 1 or bool(rng.random() < annotator.points)
    count = int(rng.integers(1, min(annotator.prompted_frames, frames) + 1))
    prompted = (0, *_some(rng, range(1, frames), count - 1))
    corrected: tuple[int, ...] = ()
    if points:
        total = int(rng.integers(count, min(annotator.corrected_frames, frames) + 1))
        rest = [t for t in range(frames) if t not in prompted]
        corrected = tuple(sorted((*prompted, *_some(rng, rest, total - count))))
    return Plan(points, prompted, corrected, (*prompted, *(t for t in range(frames) if t not in prompted)))


def first_prompt(rng: np.random.Generator, truth: Tensor, annotator: Annotator | None = None) -> tuple[Tensor, Tensor]:
    """A box, as its two corners, or a click anywhere on each object. truth: [N, 1, H, W] bool -> [N, P, 2] pixels and [N, P] labels."""
    annotator = annotator or Annotator()
    if rng.random() < annotator.box:
        return sample_box_points(truth)
    return sample_random_points_from_errors(truth, None)


def correction(rng: np.random.Generator, truth: Tensor, found: Tensor, annotator: Annotator | None = None) -> tuple[Tensor, Tensor]:
    """A click of each object where its mask is wrong. truth, found: [N, 1, H, W] bool -> [N, 1, 2] pixels and [N, 1] labels."""
    annotator = annotator or Annotator()
    return sample_random_points_from_errors(truth, None if rng.random() < annotator.anywhere else found)


def _some(rng: np.random.Generator, frames: range | list[int], count: int) -> tuple[int, ...]:
    return tuple(sorted(int(t) for t in rng.choice(list(frames), count, replace=False))) if count > 0 else ()
