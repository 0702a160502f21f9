"""Results of frames as a session stores them, and stored results as masks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sam2_fast.config import NO_OBJECT_LOGIT
from sam2_fast.masks import fill_holes
from sam2_fast.types import FrameMemory, Preview, Tracked
from sam2_fast.video.session import VideoSession


def stored_logits(session: VideoSession, logits: Tensor, hole_area: int) -> Tensor:
    """Logits [N, 1, 4h, 4w] with small holes filled, on the storage device of the session.

    hole_area: pixels of the largest hole that is filled; 0: none.
    """
    return (fill_holes(logits, hole_area) if hole_area > 0 else logits).to(session.storage)


def frame_memories(session: VideoSession, tracked: Tracked, hole_area: int) -> list[FrameMemory]:
    """One memory for each object, on the storage device of the session."""
    logits = stored_logits(session, tracked.logits, hole_area)
    maps = tracked.maps.to(session.storage)
    columns = tracked.pointer, tracked.presence, maps, logits
    return [FrameMemory(*row) for row in zip(*(x.unbind() for x in columns), strict=True)]


def stacked_logits(
    session: VideoSession, rows: Sequence[Preview | FrameMemory | None], side: int
) -> Tensor:
    """[N, 1, side, side] float32 on the compute device; an object without a result is absent."""
    device = session.device
    if not rows:
        return torch.zeros(0, 1, side, side, device=device)
    logits = [None if row is None else row.logits for row in rows]
    known = [x.to(device) for x in logits if x is not None]
    if len(known) == len(rows):
        return torch.stack(known)
    absent = torch.full((1, side, side), NO_OBJECT_LOGIT, device=device)
    return torch.stack([absent if x is None else x.to(device) for x in logits])
