"""Semi-supervised video object segmentation (SAM 2 paper, 6.3).

Each object is prompted once, on its first frame, and followed from there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch

from sam2_fast.data.clicks import sample_one_point_from_error_center
from sam2_fast.evaluation.metrics import BOUND
from sam2_fast.evaluation.scores import Mask, ObjectScore, VideoScores
from sam2_fast.ops.core.mask_values import bool_tensor

Prompt = Literal["mask", "box", "click", "3 clicks", "5 clicks"]
CLICKS = {"click": 1, "3 clicks": 3, "5 clicks": 5}


def follow(
    predictor: Any, video: Any, truth: Sequence[Mapping[int, Mask] | None], prompt: Prompt = "mask"
) -> list[dict[int, Mask]]:
    """The masks of each frame.

    Objects that appear on the same frame are followed together, in a separate session that starts
    on this frame.
    predictor: any object with the official calls.
    video: accepted by `init_state`.
    truth: for each frame masks [H, W] bool by object, or None without annotations. The predictor
        receives only the first mask of each object.
    prompt: a mask, a box or clicks. The first click is at the centre of the object, each further
        one inside the largest error of the current mask.
    """
    if prompt not in ("mask", "box", *CLICKS):
        raise ValueError(f"prompt: expected mask, box, {', '.join(CLICKS)}, got {prompt!r}")
    groups: dict[int, list[int]] = {}
    seen: set[int] = set()
    for frame, masks in enumerate(truth):
        new = sorted(i for i, mask in (masks or {}).items() if mask.any() and i not in seen)
        if new:
            groups[frame] = new
            seen |= set(new)
    masks_of_frames: list[dict[int, Mask]] = [{} for _ in truth]
    for frame, objects in groups.items():
        state = predictor.init_state(video)
        for i in objects:
            _prompt(predictor, state, frame, i, (truth[frame] or {})[i], prompt)
        for t, ids, logits in predictor.propagate_in_video(state, start_frame_idx=frame):
            masks_of_frames[t] |= {i: (logits[ids.index(i), 0] > 0).cpu().numpy() for i in objects}
    return masks_of_frames


def semi_supervised(
    predictor: Any,
    video: Any,
    truth: Sequence[Mapping[int, Mask] | None],
    prompt: Prompt = "mask",
    *,
    name: str = "",
    ends: bool = False,
    bound: float = BOUND,
) -> list[ObjectScore]:
    """Scores of `follow` on all annotated frames except the first and last; `ends` includes them.

    Other arguments are those of `follow`.
    """
    predicted = follow(predictor, video, truth, prompt)
    scores = VideoScores(bound=bound)
    pairs = [(masks, predicted[t]) for t, masks in enumerate(truth) if masks is not None]
    for true_masks, masks in pairs if ends else pairs[1:-1]:
        scores.add(true_masks, masks)
    return scores.result(name)


def _prompt(
    predictor: Any, state: Any, frame: int, number: int, truth: Mask, prompt: Prompt
) -> None:
    if prompt == "mask":
        predictor.add_new_mask(state, frame, number, truth)
        return
    if prompt == "box":
        rows, columns = np.flatnonzero(truth.any(1)), np.flatnonzero(truth.any(0))
        box = np.array([columns[0], rows[0], columns[-1], rows[-1]], dtype=np.float32)
        predictor.add_new_points_or_box(state, frame, number, box=box)
        return
    true_mask = bool_tensor(truth, "truth")[None, None]
    mask: torch.Tensor | None = None
    for _ in range(CLICKS[prompt]):
        if mask is not None and torch.equal(mask, true_mask):
            return
        points, labels = sample_one_point_from_error_center(true_mask, mask)
        _, ids, logits = predictor.add_new_points_or_box(
            state,
            frame,
            number,
            points=points[0].numpy(),
            labels=labels[0].numpy(),
            clear_old_points=False,
        )
        mask = (logits[ids.index(number)] > 0).cpu()[None]
