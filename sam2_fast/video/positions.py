"""Positions of memory maps: those of the model, or others that the state contains."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from sam2_fast.memory import FrameMemory
from sam2_fast.model import Sam2
from sam2_fast.video.session import ObjectTrack, VideoSession

_KEY = "maskmem_pos_enc"


def session_positions(session: VideoSession) -> list[Tensor] | None:
    """The positions of all memory maps of a session; None before its first map."""
    positions: list[Tensor] | None = session.state["constants"].get(_KEY)
    return positions


def new_positions(session: VideoSession, model: Sam2, dtype: torch.dtype) -> list[Tensor]:
    """The positions of maps of this dtype, which the model computes; the session is not changed."""
    positions = session_positions(session)
    return [model._memory_map_position(dtype)] if positions is None else positions


def keep_positions(session: VideoSession, outputs: Iterable[Any]) -> None:
    """Store the positions of the first output with a map, if the session has none yet."""
    constants = session.state["constants"]
    if _KEY in constants:
        return
    for output in outputs:
        if isinstance(output, FrameMemory) and output.positions is not None:
            session.journal.set(constants, _KEY, output.positions)
            return


def has_own_positions(session: VideoSession, model: Sam2) -> bool:
    """Whether the positions in the session's `constants` are those of the model.

    Equal ones, for example of a copied session, are replaced by the model's tensors.
    """
    positions = session_positions(session)
    if positions is None:
        return True
    control = session.control
    if control.own_position is positions[-1] and control.position_model() is model:
        return True
    own = model._memory_map_position(positions[-1].dtype)
    if positions[-1].data_ptr() != own.data_ptr():
        if len(positions) != 1 or not _equal(positions[0], own):
            return False
        positions[0] = own
    control.own_position, control.position_model = positions[-1], weakref.ref(model)
    return True


def has_positions_of_session(
    session: VideoSession, track: ObjectTrack, frames: Sequence[int]
) -> bool:
    """Whether the maps of these frames have the session's positions, and not others."""
    shared = session_positions(session)
    if shared is None:
        return True
    for frame in frames:
        memory = track.bank.get(frame)
        positions = None if memory is None else memory.positions
        if positions is None or positions is shared or positions[-1] is shared[-1]:
            continue
        if not _equal(positions[-1], shared[-1]):
            return False
    return True


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.to(b.device, b.dtype), b)
