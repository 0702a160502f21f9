"""Promptable video segmentation with simulated users, offline and online.

A user clicks a few times on a few frames (SAM 2 paper, section 6.1, E.1.2). The official code was
never released. What the paper leaves open is decided here and pinned by tests (docs/evaluation.md):
prompted frames count like all others; of equally bad frames the earliest is corrected; a frame may
be chosen twice, and its clicks then add up; clicks are given one after the other, each inside the
largest error of the current mask; if the mask has no error, the user stops clicking.
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
from sam2_fast.ops.core.mask_values import bool_tensor

OBJECT = 1  # the id of the tracked object; every object is evaluated alone


class VideoPredictor(Protocol):
    """The calls of the official predictor that the evaluation uses."""

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
    """The quality of the masks after the user's last prompt, and the prompts until then."""

    j: float
    f: float
    prompted: list[int]  # frames, in the order in which they were corrected
    clicks: int

    @property
    def j_and_f(self) -> float:
        """The mean of J and F."""
        return (self.j + self.f) / 2


@dataclass
class _User:
    """A simulated user of one object in one video, with the object's true masks."""

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
        """Click up to `clicks_per_frame` times, each at the centre of the largest error."""
        self.prompted.append(frame)
        truth = bool_tensor(self.truth[frame], "truth")[None, None]
        for _ in range(self.clicks_per_frame):
            current = self.masks.get(frame)
            mask = None if current is None else torch.from_numpy(current)[None, None]
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
        """Track from `start` to the end, or to the first frame for which `stop` is true.

        Returns this frame, or None at the end.
        """
        tracked = self.predictor.propagate_in_video(self.state, start_frame_idx=start)
        with closing(tracked):
            for result in tracked:
                self.masks[result[0]] = _mask_of(result)
                if stop is not None and stop(result[0]):
                    return result[0]
        return None

    def iou(self, frame: int) -> float:
        mask, truth = (bool_tensor(x[frame], "truth") for x in (self.masks, self.truth))
        return region_similarity(mask, truth).item()

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
    """Scores after 1, 2, ... prompted frames, with the whole video tracked again each time.

    The first frame with the object is prompted, then repeatedly the worst frame.
    video: accepted by `init_state`. truth: [H, W] bool for each frame.
    Frames before the object's first appearance are not scored. Once no frame is wrong, the last
    score is repeated.
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
    """Scores with at most 1, 2, ... `prompted_frames` prompted frames, each in a separate pass.

    If the IoU of the current frame falls below `threshold`, the user stops, corrects the frame and
    continues; the masks of earlier frames stay. Other arguments are those of `offline`.
    """
    rounds: list[Interaction] = []
    for max_prompted in range(1, prompted_frames + 1):
        user = _User(predictor, video, truth, clicks_per_frame)
        frame: int | None = user.first
        while frame is not None:
            user.prompt(frame)
            is_bad = partial(_is_bad, user, max_prompted=max_prompted, threshold=threshold)
            frame = user.propagate(frame, is_bad)
        rounds.append(user.score(bound))
        if len(user.prompted) < max_prompted:  # there is nothing more to correct
            break
    return rounds + rounds[-1:] * (prompted_frames - len(rounds))


def _is_bad(user: _User, frame: int, max_prompted: int, threshold: float) -> bool:
    return (
        len(user.prompted) < max_prompted
        and frame not in user.prompted
        and user.iou(frame) < threshold
    )


def mean_j_and_f(rounds: Sequence[Interaction]) -> float:
    """The number that the paper reports: J&F averaged over the numbers of prompted frames."""
    return float(np.mean([interaction.j_and_f for interaction in rounds]))


# Seconds: find the object, click once, look at one frame.
LOCATE, CLICK, EXAMINE = 1.0, 1.5, 30.0 / 300


def offline_seconds(frames: int, prompted: int, clicks_per_frame: float) -> float:
    """Time of a user by the paper's model: the video is watched once for each prompted frame."""
    return (EXAMINE * frames + LOCATE + CLICK * clicks_per_frame) * prompted


def online_seconds(frames: int, prompted: int, clicks_per_frame: float) -> float:
    """Time of a user by the paper's model: the video is watched once."""
    return EXAMINE * frames + (LOCATE + CLICK * clicks_per_frame) * prompted
