"""Named weights as objects whose fields can be changed, for tests of the checks in the native
module.
"""

from __future__ import annotations

from dataclasses import fields
from types import SimpleNamespace
from typing import Any

from sam2_fast.ops.core.weights import Weights
from sam2_fast.ops.memory_encoder import MemoryEncoderWeights


def namespace_of(weights: Any) -> Any:
    """The fields of `weights` in a `SimpleNamespace`, sequences as lists."""
    if isinstance(weights, tuple):
        return [namespace_of(part) for part in weights]
    if not isinstance(weights, Weights):
        return weights
    members = {field.name: namespace_of(getattr(weights, field.name)) for field in fields(weights)}
    if isinstance(weights, MemoryEncoderWeights):
        members["convolutions"] = members.pop("first_convolutions") + members.pop(
            "last_convolutions"
        )
    return SimpleNamespace(**members)
