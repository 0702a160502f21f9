"""What is computed from weights once and kept while they stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import count
from typing import ClassVar, Generic, TypeVar, cast

import torch
from torch import Tensor

from sam2_fast.ops.core import tracing
from sam2_fast.ops.core.native import is_plain, wants_gradients
from sam2_fast.proving.device import capturing

Value = TypeVar("Value")

_made = count(1)


class Kept(Generic[Value]):
    """What was last computed from parameters, kept while they stay as they are. Copies and pickles of a model start without it."""

    made: ClassVar[int] = 0
    """Another number whenever any `Kept` has computed its value, which other streams have to wait for."""

    def __init__(self) -> None:
        self._of: tuple[object, ...] = ()
        self._value: Value | None = None

    def get(self, make: Callable[[], Value], parameters: Sequence[Tensor], *arguments: object) -> Value:
        """`make()`, or what it returned before for the same `parameters` and `arguments`; where gradients are wanted or operations
        recorded, always `make()`."""
        if tracing.recording_reason() is not None or wants_gradients(*parameters):
            return make()  # a recording computes it from the parameters; what is made meanwhile is of no use to later calls
        if not is_plain(*parameters) or any(p.is_inference() for p in parameters):
            return make()
        state = [(p.data_ptr(), p._version, p.dtype, p.device) for p in parameters]
        # the parameters themselves are held too, so that no new one can have an old one's place in memory
        of = (*map(_Same, parameters), *state, *arguments, torch.is_inference_mode_enabled())
        if self._value is None or of != self._of:
            if any(map(capturing, parameters)):
                return make()  # exists once the graph is replayed, other streams cannot read it before
            self._of, self._value = of, make()
            Kept.made = next(_made)
        return self._value

    def clear(self) -> None:
        """Forget it: for changes that leave no trace, such as `module.half()`."""
        self._of, self._value = (), None

    @property
    def value(self) -> Value | None:
        """What is kept just now."""
        return self._value

    def __reduce__(self) -> tuple[type[Kept[Value]], tuple[()]]:
        return Kept, ()


class Weights(list[Tensor]):
    """The weights of an op, and what backends have derived from them, for `derive`."""

    def __init__(self, tensors: Iterable[Tensor], derived: Kept[dict[str, object]], parameters: Sequence[Tensor], *of: object) -> None:
        """derived: keeps it while `parameters`, of which the tensors are made, and `of` stay as they are."""
        super().__init__(tensors)
        self._derived, self._parameters, self._of = derived, parameters, of
        self.selection = ""

    def with_tensors(self, tensors: Iterable[Tensor], selection: str) -> Weights:
        """Other tensors that are made of the same parameters. selection: the same for the same ones."""
        found = Weights(tensors, self._derived, self._parameters, *self._of)
        found.selection = selection
        return found

    def derived(self) -> dict[str, object]:
        """What is derived from the parameters as they are now, by name."""
        return self._derived.get(dict, self._parameters, *self._of)


def derive(weights: Sequence[Tensor], name: str, make: Callable[[], Value]) -> Value:
    """`make()`, which depends on nothing but `weights` and `name`, or what it returned before for the same `Weights`."""
    if not isinstance(weights, Weights):
        return make()
    values, name = weights.derived(), f"{weights.selection} {name}"
    if name not in values:
        value = make()
        if any(map(capturing, weights)):
            return value  # exists once the graph is replayed, other streams cannot read it before
        values.setdefault(name, value)
        Kept.made = next(_made)
    return cast(Value, values[name])


class _Same:
    """Equal if the same object (`==` of tensors compares their numbers)."""

    def __init__(self, what: Tensor) -> None:
        self.what = what

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.what is other.what

    __hash__ = None  # type: ignore[assignment]
