"""What is computed from weights once and held while they stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

from sam2_fast.ops.core import tracing
from sam2_fast.ops.core.layout import Leaf
from sam2_fast.ops.core.native import wants_gradients
from sam2_fast.ops.core.state import Members, State
from sam2_fast.ops.core.weights import Weights
from sam2_fast.proving.device import capturing

Value = TypeVar("Value")
W = TypeVar("W", bound=Weights)

_computations = count(1)


class _Held(NamedTuple):
    state: State
    key: tuple[object, ...]
    value: Any


class Cache(Generic[Value]):
    """What was last computed from parameters, held while they stay as they are.

    Copies and pickles of a model start without it.
    """

    computations: ClassVar[int] = 0
    """Another number whenever a value has been computed, which other streams have to wait for."""

    def __init__(self) -> None:
        self._held: _Held | None = None

    def get(
        self, make: Callable[[], Value], parameters: Sequence[Tensor], *arguments: object
    ) -> Value:
        """`make()`, or what it returned before for the same `parameters` and `arguments`.

        Where gradients are computed or operations recorded, always `make()`.
        """
        if tracing.recording_reason() is not None or wants_gradients(*parameters):
            return make()  # a recording computes it from the parameters, later calls cannot use it
        key = (*arguments, torch.is_inference_mode_enabled())
        held = self._held
        if held is not None and held.key == key and held.state.same_of(parameters):
            return cast(Value, held.value)
        state = State(parameters)
        if not state.counts_writes or any(map(capturing, parameters)):
            return make()  # what is captured exists once the graph is replayed
        value = make()
        self._held = _Held(state, key, value)
        Cache.computations = next(_computations)
        return value

    def clear(self) -> None:
        """Forget it: for changes that leave no trace, such as `module.half()`."""
        self._held = None

    @property
    def value(self) -> Value | None:
        """What is held now, or None."""
        return None if self._held is None else cast(Value, self._held.value)

    def __reduce__(self) -> tuple[type[Cache[Value]], tuple[()]]:
        return Cache, ()


class WeightsCache(Generic[W]):
    """The weights of an op, gathered from modules and checked when they are placed or changed.

    Copies and pickles of a model start without them.
    """

    def __init__(self) -> None:
        self._held: tuple[Members, W] | None = None

    def get(self, modules: Callable[[], Sequence[nn.Module]], gather: Callable[[], W]) -> W:
        """`gather()`, or what it returned before while all modules and parameters stay as they are.

        modules: gives those that `gather` reads.
        """
        if tracing.recording_reason() is not None:
            return gather()
        if self._held is not None:
            members, weights = self._held
            state = weights.state
            if state is not None and members.same() and state.same():
                return weights
        weights = gather()
        if weights.state is not None and weights.state.plain:
            self._held = Members(modules()), weights
        return weights

    def clear(self) -> None:
        """Forget them: for changes that leave no trace, such as `module.half()`."""
        self._held = None

    @property
    def held(self) -> list[object]:
        """The weights and what was derived from them; empty before there are any."""
        if self._held is None:
            return []
        weights = self._held[1]
        derived = [] if weights.state is None else weights.state.held
        return [weights, *derived]

    def __reduce__(self) -> tuple[type[WeightsCache[W]], tuple[()]]:
        return WeightsCache, ()


def derive(weights: Weights, name: str, make: Callable[[], Value]) -> Value:
    """`make()`, which depends on nothing but `weights` and `name`, or what it returned before.

    It is held with `weights` while its tensors are neither written nor moved. Where gradients are
    computed or operations recorded, always `make()`.
    """
    state = weights.state
    if state is None or not state.counts_writes or tracing.recording_reason() is not None:
        return make()
    if wants_gradients(*state.tensors):
        return make()
    values = state.values()
    if name not in values:
        # tensors of inference mode count no writes: nothing derived from them could be held
        with torch.inference_mode(False), torch.no_grad():
            value = make()
        if any(map(capturing, state.tensors)):
            return value  # exists once the graph is replayed, other streams cannot read it before
        values.setdefault(name, value)
        Cache.computations = next(_computations)
    return cast(Value, values[name])


def for_cpu(weights: W, dtype: torch.dtype) -> W:
    """What kernels for CPUs read: matrices in `dtype`, all else in float32, contiguous."""

    def change(leaf: Leaf, x: Tensor) -> Tensor:
        return x.detach().to(dtype if leaf.matrix else torch.float32).contiguous()

    return weights.converted(change)


def for_gpu(weights: W, dtype: torch.dtype) -> W:
    """What Triton kernels read: matrices in `dtype`, all else as it is, contiguous."""

    def change(leaf: Leaf, x: Tensor) -> Tensor:
        return (x.detach().to(dtype) if leaf.matrix else x.detach()).contiguous()

    return weights.converted(change)
