"""Named weights as objects whose fields can be changed, for tests of what the
native module checks.
"""

from __future__ import annotations

from dataclasses import fields
from types import SimpleNamespace
from typing import Any

from sam2_fast.ops.core.weights import Weights
from sam2_fast.ops.memory_encoder import MemoryEncoderWeights


def namespace_of(weights: Any) -> Any:
    """The same fields in a `SimpleNamespace`, sequences in lists."""
    if isinstance(weights, tuple):
        return [namespace_of(part) for part in weights]
    if not isinstance(weights, Weights):
        return weights
    found = {field.name: namespace_of(getattr(weights, field.name)) for field in fields(weights)}
    if isinstance(weights, MemoryEncoderWeights):
        found["convolutions"] = found.pop("first_convolutions") + found.pop("last_convolutions")
    return SimpleNamespace(**found)
