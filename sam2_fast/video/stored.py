"""Results of frames as a session stores them, and stored results as masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sam2_fast.config import NO_OBJECT_LOGIT as NO_OBJ_SCORE
from sam2_fast.memory import FrameMemory
from sam2_fast.memory.frame_memory import to_map
from sam2_fast.official.predictor_steps import filled
from sam2_fast.types import Tracked
from sam2_fast.video.session import VideoSession


def stored_logits(session: VideoSession, logits: Tensor, hole_area: int) -> Tensor:
    """Logits [N, 1, 4h, 4w] with small holes filled, on the storage device of the session.

    hole_area: pixels of the largest hole that is filled; 0: none.
    """
    return filled(logits, hole_area).to(session.storage)


def preview_of(
    session: VideoSession, results: tuple[Tensor, Tensor, Tensor], hole_area: int
) -> FrameMemory:
    """The result of a prompt. results: logits [1, 1, 4h, 4w], pointer [1, 256], presence [1, 1]."""
    logits, pointer, presence = results
    return FrameMemory(pointer[0], presence[0], logits=stored_logits(session, logits, hole_area)[0])


def frame_memories(
    session: VideoSession, tracked: Tracked, hole_area: int, positions: list[Tensor]
) -> list[FrameMemory]:
    """One memory for each object, on the storage device of the session.

    positions: of memory maps, as in `FrameMemory`.
    """
    logits = stored_logits(session, tracked.logits, hole_area)
    maps = tracked.maps.to(session.storage)
    columns = tracked.pointer, tracked.presence, maps, logits
    rows = zip(*(x.unbind() for x in columns), strict=True)
    return [FrameMemory(p, s, map_, masks, positions) for p, s, map_, masks in rows]


def with_map(preview: dict[str, Any], tokens: Tensor, positions: list[Tensor]) -> dict[str, Any]:
    """A preview as a memory, with the memory map [h * w, 64] that was encoded from it."""
    if isinstance(preview, FrameMemory) and preview.is_compact:
        return FrameMemory(preview.pointer, preview.presence, tokens, preview.logits, positions)
    features = to_map(tokens)
    return {**preview, "maskmem_features": features, "maskmem_pos_enc": [*positions]}


def as_corrected(
    session: VideoSession, output: dict[str, Any], corrected: bool = True
) -> dict[str, Any]:
    """An output of a frame that the user has corrected after tracking it, or has not."""
    if not isinstance(output, FrameMemory):
        if not corrected:
            return output
        output = FrameMemory.of(output)
    session.journal.set_slot(output, "corrected", corrected)
    return output


def stacked_logits(session: VideoSession, rows: Sequence[FrameMemory | None], side: int) -> Tensor:
    """[N, 1, side, side] float32 on the compute device; an object without a result is absent."""
    device = session.device
    if not rows:
        return torch.zeros(0, 1, side, side, device=device)
    logits = [None if row is None else row.logits for row in rows]
    known = [x.to(device) for x in logits if x is not None]
    if len(known) == len(rows):
        return torch.stack(known)
    absent = torch.full((1, side, side), NO_OBJ_SCORE, device=device)
    return torch.stack([absent if x is None else x.to(device) for x in logits])
