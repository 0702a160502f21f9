"""Promptable video segmentation with simulated users: a few clicks on a few frames, offline and
online (SAM 2 paper, section 6.1, E.1.2).

The official code was never released; what the paper leaves open is decided here and pinned by tests
(docs/evaluation.md): prompted frames count like all others; of equally bad frames the earliest is
corrected; a frame may be chosen twice, its clicks then add up; clicks are given one after the
other, each where the mask of the last one is most wrong; where nothing is wrong the user stops
clicking.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch

from sam2_fast.data.clicks import sample_one_point_from_error_center
from sam2_fast.evaluation.metrics import BOUND, region_similarity
from sam2_fast.evaluation.scores import Mask, VideoScores

OBJECT = 1  # the id under which the object is tracked; each is evaluated alone


class VideoPredictor(Protocol):
    """What an evaluation asks of a predictor: the official calls."""

    def init_state(self, video_path: Any) -> Any: ...
    def add_new_points_or_box(
        self,
        inference_state: Any,
        frame_idx: int,
        obj_id: int,
        *,
        points: Any,
        labels: Any,
        clear_old_points: bool,
    ) -> tuple[int, list[int], torch.Tensor]: ...
    def propagate_in_video(
        self, inference_state: Any, start_frame_idx: int | None = None
    ) -> Generator[Any, None, None]: ...


@dataclass
class Interaction:
    """How good the masks were after the user's last prompt, and what that took."""

    j: float
    f: float
    prompted: list[int]  # frames, in the order in which they were corrected
    clicks: int

    @property
    def j_and_f(self) -> float:
        """The mean of both."""
        return (self.j + self.f) / 2


@dataclass
class _User:
    """Clicks on one object of one video, judged by its true masks."""

    predictor: VideoPredictor
    video: Any
    truth: Sequence[Mask]
    clicks_per_frame: int
    state: Any = None
    clicks: int = 0
    prompted: list[int] = field(default_factory=list)
    masks: dict[int, Mask] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.state = self.predictor.init_state(self.video)
        seen = [t for t, mask in enumerate(self.truth) if mask.any()]
        if not seen:
            raise ValueError("truth: expected the object on some frame, got none")
        self.first = seen[0]

    def prompt(self, frame: int) -> None:
        """Up to `clicks_per_frame` clicks, each at the centre of the largest error of the mask so
        far.
        """
        self.prompted.append(frame)
        truth = torch.from_numpy(np.ascontiguousarray(self.truth[frame]))[None, None]
        for _ in range(self.clicks_per_frame):
            now = self.masks.get(frame)
            mask = None if now is None else torch.from_numpy(now)[None, None]
            if mask is not None and torch.equal(mask, truth):
                return
            points, labels = sample_one_point_from_error_center(truth, mask)
            result = self.predictor.add_new_points_or_box(
                self.state,
                frame,
                OBJECT,
                points=points[0].numpy(),
                labels=labels[0].numpy(),
                clear_old_points=False,
            )
            self.clicks += 1
            self.masks[frame] = _mask_of(result)

    def propagate(self, start: int, stop: Callable[[int], bool] | None = None) -> int | None:
        """Track from `start` to the end, or to the first frame that `stop` is true of, which is
        returned.
        """
        tracked = self.predictor.propagate_in_video(self.state, start_frame_idx=start)
        with closing(tracked):
            for found in tracked:
                self.masks[found[0]] = _mask_of(found)
                if stop is not None and stop(found[0]):
                    return found[0]
        return None

    def iou(self, frame: int) -> float:
        found, truth = (
            torch.from_numpy(np.ascontiguousarray(x[frame])) for x in (self.masks, self.truth)
        )
        return region_similarity(found, truth).item()

    def score(self, bound: float) -> Interaction:
        scores = VideoScores(bound=bound)
        for frame in range(self.first, len(self.truth)):
            scores.add({OBJECT: self.truth[frame]}, {OBJECT: self.masks[frame]})
        (row,) = scores.result("")
        return Interaction(row.j, row.f, list(self.prompted), self.clicks)


def _mask_of(result: tuple[int, list[int], torch.Tensor]) -> Mask:
    mask: Mask = (result[2][result[1].index(OBJECT), 0] > 0).cpu().numpy()
    return mask


def offline(
    predictor: VideoPredictor,
    video: Any,
    truth: Sequence[Mask],
    *,
    clicks_per_frame: int = 3,
    prompted_frames: int = 8,
    bound: float = BOUND,
) -> list[Interaction]:
    """Prompt the first frame, track the whole video, correct the worst frame, track all again:
    scores after 1, 2 ... prompted frames.

    video: whatever `init_state` takes; truth: [H, W] bool of each frame. Before the object's first
    appearance nothing is judged. Once no frame is wrong, the last score stands for the rest.
    """
    user = _User(predictor, video, truth, clicks_per_frame)
    rounds: list[Interaction] = []
    worst = user.first
    for _ in range(prompted_frames):
        user.prompt(worst)
        user.propagate(user.first)
        rounds.append(user.score(bound))
        ious = [user.iou(frame) for frame in range(user.first, len(truth))]
        if min(ious) == 1.0:
            break
        worst = user.first + int(np.argmin(ious))
    return rounds + rounds[-1:] * (prompted_frames - len(rounds))


def online(
    predictor: VideoPredictor,
    video: Any,
    truth: Sequence[Mask],
    *,
    clicks_per_frame: int = 3,
    prompted_frames: int = 8,
    threshold: float = 0.75,
    bound: float = BOUND,
) -> list[Interaction]:
    """One pass: where the current frame's IoU falls below `threshold` the user stops, corrects it
    and goes on; earlier frames stay.

    Returns scores with at most 1, 2 ... `prompted_frames` prompted frames; each is a pass of its
    own. Other arguments as `offline`.
    """
    rounds: list[Interaction] = []
    for most in range(1, prompted_frames + 1):
        user = _User(predictor, video, truth, clicks_per_frame)
        frame: int | None = user.first
        while frame is not None:
            user.prompt(frame)
            is_bad = partial(_is_bad, user, most=most, threshold=threshold)
            frame = user.propagate(frame, is_bad)
        rounds.append(user.score(bound))
        if len(user.prompted) < most:  # nothing more to correct
            break
    return rounds + rounds[-1:] * (prompted_frames - len(rounds))


def _is_bad(user: _User, frame: int, most: int, threshold: float) -> bool:
    return len(user.prompted) < most and frame not in user.prompted and user.iou(frame) < threshold


def mean_j_and_f(rounds: Sequence[Interaction]) -> float:
    """The paper's number: J&F averaged over the numbers of prompted frames."""
    return float(np.mean([interaction.j_and_f for interaction in rounds]))


LOCATE, CLICK, EXAMINE = 1.0, 1.5, 30.0 / 300  # seconds: find the object, click, look at a frame


def offline_seconds(frames: int, prompted: int, clicks_per_frame: float) -> float:
    """What a user needs, by the paper's model: the video is looked through for
    each prompted frame.
    """
    return (EXAMINE * frames + LOCATE + CLICK * clicks_per_frame) * prompted


def online_seconds(frames: int, prompted: int, clicks_per_frame: float) -> float:
    """What a user needs, by the paper's model: the video is looked through once."""
    return EXAMINE * frames + (LOCATE + CLICK * clicks_per_frame) * prompted
