"""Requirements of backends: each returns the reason why a call does not meet it, or None."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from sam2_fast.ops.core.autocast import compute_dtype
from sam2_fast.ops.core.native import is_differentiated, is_plain
from sam2_fast.ops.core.state import Facts
from sam2_fast.ops.core.weights import Weights

HALF = (torch.bfloat16, torch.float16)
FLOATS = (torch.float32, *HALF)


class Request:
    """Arguments of a call, and the tensors and weights among them."""

    def __init__(self, arguments: tuple[Any, ...]) -> None:
        self.arguments = arguments
        self.tensors: list[Tensor] = []
        """Includes tensors in lists and tuples, but not those of weights."""
        self.weights: list[Weights] = []
        for argument in arguments:
            _sort(argument, self.tensors, self.weights)
        self._facts: list[Facts] | None = None

    def facts(self) -> list[Facts]:
        """The facts of each of the weights."""
        if self._facts is None:
            self._facts = [weights.facts() for weights in self.weights]
        return self._facts

    def all_plain(self) -> bool:
        """Whether all are ordinary tensors with their values in memory."""
        return is_plain(*self.tensors) and all(facts.plain for facts in self.facts())

    def is_differentiated(self) -> bool:
        """Whether autograd records operations on any of the tensors."""
        if not torch.is_grad_enabled():
            return False
        return is_differentiated(*self.tensors, *(x for w in self.weights for x in w.tensors))

    def devices(self) -> set[torch.device]:
        """The devices of the tensors."""
        devices = {x.device for x in self.tensors}
        return devices.union(*(facts.devices for facts in self.facts()))

    def dtypes(self) -> set[torch.dtype]:
        """Dtypes of floating-point tensors."""
        dtypes = {x.dtype for x in self.tensors}
        dtypes = dtypes.union(*(facts.dtypes for facts in self.facts()))
        return {dtype for dtype in dtypes if dtype.is_floating_point}


def _sort(value: object, tensors: list[Tensor], weights: list[Weights]) -> None:
    if isinstance(value, Tensor):
        tensors.append(value)
    elif isinstance(value, Weights):
        weights.append(value)
    elif isinstance(value, list | tuple):
        if value and isinstance(value[0], int):
            return  # a list of numbers contains no tensors
        for item in value:
            _sort(item, tensors, weights)


Requirement = Callable[[Request], str | None]


def on_one(kind: str) -> Requirement:
    """Requires all tensors to be on one device of this type ("cuda", "cpu")."""

    def refuses(request: Request) -> str | None:
        devices = request.devices()
        if len(devices) == 1 and next(iter(devices)).type == kind:
            return None
        return f"tensors are on {_listed(devices)}; all must be on one {kind} device"

    return refuses


def plain(request: Request) -> str | None:
    """Requires ordinary tensors with their values in memory."""
    if request.all_plain():
        return None
    kinds = {type(x).__name__ for x in request.tensors}
    kinds = kinds.union(*(facts.kinds for facts in request.facts()))
    return f"tensors are {_listed(kinds)}, some lazy or of a subclass; supported: plain tensors"


def no_grad(request: Request) -> str | None:
    """Requires that autograd does not record the call."""
    if request.is_differentiated():
        return "inputs require grad and gradients are enabled; this backend is inference-only"
    return None


def stored_in(*dtypes: torch.dtype) -> Requirement:
    """Requires one of these dtypes of all floats, and the same one of all matrices of weights."""

    def refuses(request: Request) -> str | None:
        actual = request.dtypes()
        matrices = set().union(*(facts.matrix_dtypes for facts in request.facts()))
        if actual <= set(dtypes) and len(matrices) <= 1:
            return None
        alike = ", the same for all matrices of the weights" if matrices else ""
        return f"dtypes are {_listed(actual)}; supported: {_listed(dtypes)}{alike}"

    return refuses


def computes_in(*dtypes: torch.dtype) -> Requirement:
    """Requires one of these as the compute dtype: autocast's, else that of the weights."""

    def refuses(request: Request) -> str | None:
        actual = compute_dtype(request.weights[0].first_matrix)
        if actual in dtypes:
            return None
        return f"the compute dtype is {actual}; supported: {_listed(dtypes)}"

    return refuses


def fits(refuses: Callable[..., str | None]) -> Requirement:
    """Requires that `refuses(*arguments)` returns None, else a reason."""
    return lambda request: refuses(*request.arguments)


def _listed(values: Iterable[object]) -> str:
    return ", ".join(sorted(str(value).removeprefix("torch.") for value in values))
