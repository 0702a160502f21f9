"""Calls on prepared sessions, each with what makes its session."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sam2_fast.video.predictor import SAM2VideoPredictor
from tests.video.conftest import moving_frames

CLIP = moving_frames(10)
CLICK: dict[str, Any] = {"points": [[20.0, 18.0]], "labels": [1]}


@dataclass(frozen=True)
class SessionCall:
    """A call on a session.

    prepare: makes the session. call: returns masks. probe: what is done afterwards, with masks
    that depend on the whole state. is_repeatable: a second call returns the same masks.
    """

    prepare: Callable[[SAM2VideoPredictor], Any]
    call: Callable[[SAM2VideoPredictor, Any], Any]
    probe: Callable[[SAM2VideoPredictor, Any], Any]
    is_repeatable: bool = True


def fresh(p: Any) -> Any:
    return p.init_state(CLIP)


def clicked(p: Any) -> Any:
    state = fresh(p)
    p.add_new_points_or_box(state, 0, 1, **CLICK)
    p.add_new_points_or_box(state, 0, "b", points=[[50.0, 30.0]], labels=[1])
    return state


def tracked(p: Any) -> Any:
    state = clicked(p)
    for _ in p.propagate_in_video(state, 0, 4):
        pass
    return state


def corrected(p: Any) -> Any:
    state = tracked(p)
    p.add_new_points_or_box(state, 3, 1, points=[[30.0, 20.0]], labels=[1])
    return state


def stream(p: Any) -> Any:
    state = p.init_state(None)
    p.step(state, CLIP[0])
    p.add_new_points_or_box(state, 0, 1, **CLICK)
    for frame in CLIP[1:4]:
        p.step(state, frame)
    return state


def prompted_stream(p: Any) -> Any:
    state = stream(p)
    p.add_new_points_or_box(state, 3, "new", box=[5.0, 5.0, 30.0, 30.0])
    p.add_new_points_or_box(state, 2, 1, points=[[10.0, 10.0]], labels=[0])
    return state


def propagated(p: Any, state: Any, *arguments: Any) -> Any:
    return [(f, list(i), m.clone()) for f, i, m in p.propagate_in_video(state, *arguments)]


def all_masks(p: Any, state: Any) -> Any:
    if not state.obj_ids:
        p.add_new_points_or_box(state, 1, 5, **CLICK)
    return propagated(p, state, 1, 3) + propagated(p, state, 3, 1, True)


def next_steps(p: Any, state: Any) -> Any:
    return [p.step(state, frame) for frame in CLIP[5:7]]


def both(p: Any, state: Any) -> Any:
    outputs = p.propagate_in_both_directions(state, 2, max_frame_num_to_track=1)
    return [(f, list(i), m.clone()) for f, i, m in outputs]


def drawn(p: Any, state: Any) -> Any:
    mask = np.zeros((48, 72), bool)
    mask[10:30, 10:40] = True
    return p.add_new_mask(state, 2, "b", mask)


CALLS = {
    "first click": SessionCall(
        fresh, lambda p, s: p.add_new_points_or_box(s, 0, 1, **CLICK), all_masks
    ),
    "another click": SessionCall(
        clicked,
        lambda p, s: p.add_new_points_or_box(
            s, 0, 1, points=[[30.0, 20.0]], labels=[0], clear_old_points=False
        ),
        all_masks,
    ),
    "click on a third object": SessionCall(
        clicked, lambda p, s: p.add_new_points_or_box(s, 0, 3, **CLICK), all_masks
    ),
    "box": SessionCall(
        clicked, lambda p, s: p.add_new_points_or_box(s, 2, 1, box=[3.0, 4, 40, 30]), all_masks
    ),
    "mask": SessionCall(tracked, drawn, all_masks),
    "correction": SessionCall(
        tracked,
        lambda p, s: p.add_new_points_or_box(s, 2, 1, points=[[12.0, 12.0]], labels=[0]),
        all_masks,
    ),
    "correction again": SessionCall(
        corrected, lambda p, s: p.add_new_points_or_box(s, 3, 1, **CLICK), all_masks
    ),
    "preflight": SessionCall(corrected, lambda p, s: p.propagate_in_video_preflight(s), all_masks),
    "remove": SessionCall(corrected, lambda p, s: p.remove_object(s, 1), all_masks),
    "clear": SessionCall(corrected, lambda p, s: p.clear_all_prompts_in_frame(s, 3, 1), all_masks),
    "clear the only prompt": SessionCall(
        tracked, lambda p, s: p.clear_all_prompts_in_frame(s, 0, "b"), all_masks
    ),
    "reset": SessionCall(corrected, lambda p, s: p.reset_state(s), all_masks),
    "frame masks": SessionCall(
        corrected, lambda p, s: [(i, m.clone()) for i, m in p.frame_masks(s, 3)], all_masks
    ),
    "step": SessionCall(stream, lambda p, s: p.step(s, CLIP[4]), next_steps),
    "step with prompts": SessionCall(prompted_stream, lambda p, s: p.step(s, CLIP[4]), next_steps),
    "first step": SessionCall(
        lambda p: p.init_state(None), lambda p, s: p.step(s, CLIP[4]), next_steps
    ),
    "click on a stream": SessionCall(
        stream, lambda p, s: p.add_new_points_or_box(s, 2, 1, **CLICK), next_steps
    ),
}
"""Calls that change a session at once."""

PASSES = {
    "forward": SessionCall(corrected, lambda p, s: propagated(p, s, 1, 3), all_masks),
    "backward": SessionCall(corrected, lambda p, s: propagated(p, s, 4, 3, True), all_masks),
    "from the first prompt": SessionCall(clicked, lambda p, s: propagated(p, s), all_masks),
    "both directions": SessionCall(corrected, both, all_masks, False),
}
"""Calls that change a session frame by frame."""


def same(a: Any, b: Any) -> bool:
    """Whether two results are equal, tensors in all bits."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)
