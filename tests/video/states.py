"""States of short videos with clicks, and their masks."""

from __future__ import annotations

from typing import Any

import torch

CLICK: dict[str, Any] = {"points": [[20, 20]], "labels": [1]}
COND, NON_COND = "cond_frame_outputs", "non_cond_frame_outputs"


def clicked(predictor: Any, source: Any, *ids: Any) -> Any:
    """The state of a video with a click for each object on frame 0."""
    state = predictor.init_state(source)
    for obj_id in ids or (1,):
        predictor.add_new_points_or_box(state, 0, obj_id, **CLICK)
    return state


def masks(predictor: Any, state: Any, *arguments: Any) -> torch.Tensor:
    """The masks of a propagation: [frames, objects, 1, H, W]."""
    return torch.stack([m.clone() for _, _, m in predictor.propagate_in_video(state, *arguments)])
