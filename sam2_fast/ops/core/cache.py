"""Values computed from weights, cached until the weights change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from sam2_fast.ops.core import tracing
from sam2_fast.ops.core.layout import Leaf
from sam2_fast.ops.core.native import is_differentiated
from sam2_fast.ops.core.state import State
from sam2_fast.ops.core.weights import Weights
from sam2_fast.proving.device import capturing

Value = TypeVar("Value")
W = TypeVar("W", bound=Weights)

_computations = count(1)


class _Entry(NamedTuple):
    state: State
    key: tuple[object, ...]
    value: Any


class Cache(Generic[Value]):
    """The last value that was computed from parameters, valid until they change.

    Copies and pickles of a model start with an empty cache.
    """

    computations: ClassVar[int] = 0
    """Changes whenever a value has been computed. Other streams must then wait for the value."""

    def __init__(self) -> None:
        self._entry: _Entry | None = None

    def get(
        self, make: Callable[[], Value], parameters: Sequence[Tensor], *arguments: object
    ) -> Value:
        """`make()`, or its earlier result for the same unchanged `parameters` and `arguments`.

        Always calls `make()` if gradients are computed or operations are recorded.
        """
        if tracing.recording_reason() is not None or is_differentiated(*parameters):
            return make()  # the computation is part of the recording; later calls cannot use it
        key = (*arguments, torch.is_inference_mode_enabled(), _autocast_dtype(parameters))
        entry = self._entry
        if entry is not None and entry.key == key and entry.state.is_unchanged_for(parameters):
            return cast(Value, entry.value)
        state = State(parameters)
        if not state.counts_writes or any(map(capturing, parameters)):
            return make()  # a captured value exists only after the graph has been replayed
        value = make()
        self._entry = _Entry(state, key, value)
        Cache.computations = next(_computations)
        return value

    def clear(self) -> None:
        """Drop the value, after changes that cannot be detected, such as `module.half()`."""
        self._entry = None

    @property
    def value(self) -> Value | None:
        """The cached value, or None."""
        return None if self._entry is None else cast(Value, self._entry.value)

    def __reduce__(self) -> tuple[type[Cache[Value]], tuple[()]]:
        return Cache, ()


def _autocast_dtype(parameters: Sequence[Tensor]) -> torch.dtype | None:
    """The dtype of the caller's autocast on the device of the parameters, or None."""
    kind = parameters[0].device.type if parameters else "cpu"
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def derive(weights: Weights, name: str, make: Callable[[], Value]) -> Value:
    """`make()`, or its earlier result for the same unchanged `weights` and `name`.

    `make` must depend on nothing else; it runs without autocast. The result is cached with
    `weights` until one of their tensors is written or moved. Always calls `make()` if gradients are
    computed or operations are recorded.
    """
    state = weights.state
    if state is None or not state.counts_writes or tracing.recording_reason() is not None:
        return make()
    if is_differentiated(*state.tensors):
        return make()
    values = state.values()
    if name not in values:
        # inference-mode tensors have no version counter: what is derived from them is not cached
        kind = state.tensors[0].device.type
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(kind, enabled=False):
            value = make()
        if any(map(capturing, state.tensors)):
            return value  # exists only after a replay of the graph; other streams cannot read it
        values.setdefault(name, value)
        Cache.computations = next(_computations)
    return cast(Value, values[name])


def for_cpu(weights: W, dtype: torch.dtype) -> W:
    """Weights as CPU kernels read them: matrices in `dtype`, the rest in float32, contiguous."""

    def change(leaf: Leaf, x: Tensor) -> Tensor:
        return x.detach().to(dtype if leaf.matrix else torch.float32).contiguous()

    return weights.converted(change)


def for_gpu(weights: W, dtype: torch.dtype) -> W:
    """Weights as Triton kernels read them: matrices in `dtype`, the rest unchanged, contiguous."""

    def change(leaf: Leaf, x: Tensor) -> Tensor:
        return (x.detach().to(dtype) if leaf.matrix else x.detach()).contiguous()

    return weights.converted(change)
