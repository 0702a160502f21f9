"""Arguments of calls on sessions: frame numbers and ids of objects."""

from __future__ import annotations

import operator
from collections.abc import Hashable
from typing import Any

import numpy as np
import torch
from torch import Tensor


def frame_number(frame_idx: Any, num_frames: int | None, name: str = "frame_idx") -> int:
    """`frame_idx` as an int.

    frame_idx: an integer of Python or numpy, or an integer tensor of one element, in
        0 .. num_frames - 1. num_frames: None: any number from 0. name: of the argument, for errors.
    Raises TypeError for floats and booleans, IndexError outside the range.
    """
    if isinstance(frame_idx, bool) or getattr(frame_idx, "dtype", None) == torch.bool:
        raise TypeError(f"{name}: expected an integer, got a bool")
    try:
        number = operator.index(frame_idx)
    except (TypeError, RuntimeError):
        raise TypeError(
            f"{name}: expected an integer, got {type(frame_idx).__name__} {frame_idx!r}"
        ) from None
    if number < 0 or (num_frames is not None and number >= num_frames):
        last = "" if num_frames is None else f"..{num_frames - 1}"
        raise IndexError(f"{name}: expected 0{last}, got {number}")
    return number


def object_id(value: Any, name: str = "obj_id") -> Hashable:
    """An id as sessions store it; tensors and arrays of one integer become integers.

    Raises TypeError for None, for tensors and arrays of other contents and for what is not
    hashable, and ValueError for NaN.
    name: of the argument, for errors.
    """
    expected = f"{name}: expected an integer, a string or another hashable value"
    if isinstance(value, (Tensor, np.ndarray)):
        try:
            return operator.index(value)
        except (TypeError, RuntimeError):
            raise TypeError(f"{expected}, got {type(value).__name__} {_shown(value)}") from None
    if value is None:
        raise TypeError(f"{expected}, got None")
    try:
        hash(value)
    except TypeError as error:
        raise TypeError(f"{expected}, got {type(value).__name__} ({error})") from error
    if value != value:
        raise ValueError(f"{expected}, got {value!r}, which does not equal itself")
    identifier: Hashable = value
    return identifier


def _shown(value: Any) -> str:
    return f"of shape {tuple(value.shape)} and {value.dtype}"
