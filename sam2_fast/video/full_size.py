"""Masks of many objects at the size of the video, a few objects at a time."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sam2_fast.masks import upsample
from sam2_fast.video.session import VideoSession
from sam2_fast.video.stored import stacked_logits

if TYPE_CHECKING:
    from sam2_fast.video.tracker import Tracker

CHUNK_BYTES = 64 * 2**20
"""Logits at video size that are in memory at once: as many objects as fit, and at least one."""


def binary_masks(
    logits: Tensor, size: tuple[int, int], exclusive: bool, chosen: Sequence[int]
) -> Iterator[Tensor]:
    """Yields one mask [H, W] bool for each index in `chosen`, in this order.

    logits: [N, 1, 4h, 4w] of all N objects of a frame. size: (H, W) of the video, pixels.
    exclusive: a pixel belongs only to the object with the highest logit.
    The masks are those of `Tracker.output`: upsampled, then above 0.
    """
    if not chosen:
        return
    count = max(1, CHUNK_BYTES // (4 * size[0] * size[1]))
    owner = _owners(logits, size, count) if exclusive and len(logits) > 1 else None
    for start in range(0, len(chosen), count):
        indices = list(chosen[start : start + count])
        for index, row in zip(indices, upsample(logits[indices], size)[:, 0] > 0, strict=True):
            yield row if owner is None else row & (owner == index)


def _owners(logits: Tensor, size: tuple[int, int], count: int) -> Tensor:
    """[H, W] int64: the object with the highest logit of each pixel, the first of equal ones."""
    best = torch.full(size, -torch.inf, device=logits.device)
    owner = torch.zeros(size, dtype=torch.int64, device=logits.device)
    for start in range(0, len(logits), count):
        highest, index = upsample(logits[start : start + count], size)[:, 0].max(dim=0)
        owner = torch.where(highest > best, index + start, owner)
        best = torch.maximum(best, highest)
    return owner


def frame_masks(
    tracker: Tracker, session: VideoSession, frame: int, obj_ids: Sequence[Hashable]
) -> Iterator[tuple[Hashable, Tensor]]:
    """The newest results of some objects on a frame, as (id, mask [H, W] bool).

    Raises ValueError for an unknown id.
    """
    for obj_id in obj_ids:
        session.object(obj_id)
    if not tracker.has_own_output:
        _, ids, masks = tracker.newest_output(session, frame)
        return ((obj_id, masks[ids.index(obj_id), 0] > 0) for obj_id in obj_ids)
    rows = [track.newest_result(frame) for track in session.objects.values()]
    logits = stacked_logits(session, rows, tracker.logits_side)
    chosen = [session.obj_ids.index(obj_id) for obj_id in obj_ids]
    chosen_masks = binary_masks(logits, session.size, tracker.non_overlap_masks, chosen)
    return zip(obj_ids, chosen_masks, strict=True)


def no_output(session: VideoSession, frame: int) -> tuple[int, list[Hashable], Tensor]:
    """An output without masks, of calls with `need_output=False`: masks are [0, 1, H, W]."""
    return frame, session.obj_ids, torch.zeros(0, 1, *session.size, device=session.device)
