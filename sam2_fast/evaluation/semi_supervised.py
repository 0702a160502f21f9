"""Semi-supervised video object segmentation: each object is prompted once, on its first frame, and
followed (SAM 2 paper, 6.3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch

from sam2_fast.data.clicks import sample_one_point_from_error_center
from sam2_fast.evaluation.metrics import BOUND
from sam2_fast.evaluation.scores import Mask, ObjectScore, VideoScores

Prompt = Literal["mask", "box", "click", "3 clicks", "5 clicks"]
CLICKS = {"click": 1, "3 clicks": 3, "5 clicks": 5}


def follow(
    predictor: Any, video: Any, truth: Sequence[Mapping[int, Mask] | None], prompt: Prompt = "mask"
) -> list[dict[int, Mask]]:
    """The masks of each frame. Objects that appear together are followed together, in a session of
    their own, forwards from that frame.

    predictor: anything with the official calls; video: what `init_state` takes; truth: masks [H, W]
    bool by object for each frame, None where there are no annotations; only each object's first
    mask is shown to the predictor. Clicks: the centre of the object, then where the mask so far is
    most wrong.
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
    found: list[dict[int, Mask]] = [{} for _ in truth]
    for frame, objects in groups.items():
        state = predictor.init_state(video)
        for i in objects:
            _prompt(predictor, state, frame, i, (truth[frame] or {})[i], prompt)
        for t, ids, logits in predictor.propagate_in_video(state, start_frame_idx=frame):
            found[t] |= {i: (logits[ids.index(i), 0] > 0).cpu().numpy() for i in objects}
    return found


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
    """Scores of `follow` on all annotated frames but the first and last; ends: on those too.
    Arguments as `follow`.
    """
    found = follow(predictor, video, truth, prompt)
    scores = VideoScores(bound=bound)
    annotated = [(masks, found[t]) for t, masks in enumerate(truth) if masks is not None]
    for masks, mine in annotated if ends else annotated[1:-1]:
        scores.add(masks, mine)
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
    wanted = torch.from_numpy(np.ascontiguousarray(truth))[None, None]
    mask: torch.Tensor | None = None
    for _ in range(CLICKS[prompt]):
        if mask is not None and torch.equal(mask, wanted):
            return
        points, labels = sample_one_point_from_error_center(wanted, mask)
        _, ids, logits = predictor.add_new_points_or_box(
            state,
            frame,
            number,
            points=points[0].numpy(),
            labels=labels[0].numpy(),
            clear_old_points=False,
        )
        mask = (logits[ids.index(number)] > 0).cpu()[None]
