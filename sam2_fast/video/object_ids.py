"""Ids of objects: any hashable value that equals itself."""

from __future__ import annotations

import operator
from collections.abc import Hashable
from typing import Any

import numpy as np
from torch import Tensor


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
