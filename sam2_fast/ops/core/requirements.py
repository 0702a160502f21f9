"""What a backend requires of a call: each requirement says why a call does not meet it, or None."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from sam2_fast.ops.core.autocast import compute_dtype
from sam2_fast.ops.core.native import is_plain, wants_gradients
from sam2_fast.ops.core.state import Facts
from sam2_fast.ops.core.weights import Weights

HALF = (torch.bfloat16, torch.float16)
FLOATS = (torch.float32, *HALF)


class Request:
    """Arguments of a call, and the tensors among them."""

    def __init__(self, arguments: tuple[Any, ...]) -> None:
        self.arguments = arguments
        self.tensors: list[Tensor] = []
        """Also those in lists and tuples, without weights."""
        self.weights: list[Weights] = []
        for argument in arguments:
            _sort(argument, self.tensors, self.weights)
        self._facts: list[Facts] | None = None

    def facts(self) -> list[Facts]:
        """Of each of the weights."""
        if self._facts is None:
            self._facts = [weights.facts() for weights in self.weights]
        return self._facts

    def all_plain(self) -> bool:
        """Whether all are ordinary tensors, whose memory holds their numbers."""
        return is_plain(*self.tensors) and all(facts.plain for facts in self.facts())

    def want_gradients(self) -> bool:
        """Whether a result of them is differentiated."""
        if not torch.is_grad_enabled():
            return False
        return wants_gradients(*self.tensors, *(x for w in self.weights for x in w.tensors))

    def devices(self) -> set[torch.device]:
        """Where the tensors are."""
        found = {x.device for x in self.tensors}
        return found.union(*(facts.devices for facts in self.facts()))

    def dtypes(self) -> set[torch.dtype]:
        """Dtypes of floating-point tensors."""
        found = {x.dtype for x in self.tensors}
        found = found.union(*(facts.dtypes for facts in self.facts()))
        return {dtype for dtype in found if dtype.is_floating_point}


def _sort(value: object, tensors: list[Tensor], weights: list[Weights]) -> None:
    if isinstance(value, Tensor):
        tensors.append(value)
    elif isinstance(value, Weights):
        weights.append(value)
    elif isinstance(value, list | tuple):
        if value and isinstance(value[0], int):
            return  # a list of numbers holds nothing else
        for item in value:
            _sort(item, tensors, weights)


Requirement = Callable[[Request], str | None]


def on_one(kind: str) -> Requirement:
    """All tensors are on one device of this kind ("cuda", "cpu")."""

    def refuses(request: Request) -> str | None:
        devices = request.devices()
        if len(devices) == 1 and next(iter(devices)).type == kind:
            return None
        return f"tensors are on {_listed(devices)}; it takes those of one {kind} device"

    return refuses


def plain(request: Request) -> str | None:
    """All tensors are ordinary ones, whose memory holds their numbers."""
    if request.all_plain():
        return None
    kinds = {type(x).__name__ for x in request.tensors}
    kinds = kinds.union(*(facts.kinds for facts in request.facts()))
    return (
        f"tensors are {_listed(kinds)}, some of them lazy or of a subclass; it takes plain tensors"
    )


def no_grad(request: Request) -> str | None:
    """No result is differentiated."""
    if request.want_gradients():
        return "inputs require grad and gradients are enabled; this backend is inference-only"
    return None


def stored_in(*dtypes: torch.dtype) -> Requirement:
    """Floating-point tensors have one of these dtypes, all matrices of the weights the same one."""

    def refuses(request: Request) -> str | None:
        found = request.dtypes()
        matrices = set().union(*(facts.matrix_dtypes for facts in request.facts()))
        if found <= set(dtypes) and len(matrices) <= 1:
            return None
        alike = ", and all matrices of the weights in one of them" if matrices else ""
        return f"dtypes are {_listed(found)}; it takes {_listed(dtypes)}{alike}"

    return refuses


def computes_in(*dtypes: torch.dtype) -> Requirement:
    """Products are computed in one of these dtypes: autocast's, else that of the weights."""

    def refuses(request: Request) -> str | None:
        found = compute_dtype(request.weights[0].first_matrix)
        if found in dtypes:
            return None
        return f"the compute dtype is {found}; it takes {_listed(dtypes)}"

    return refuses


def fits(refuses: Callable[..., str | None]) -> Requirement:
    """`refuses(*arguments)` returns None."""
    return lambda request: refuses(*request.arguments)


def _listed(values: Iterable[object]) -> str:
    return ", ".join(sorted(str(value).removeprefix("torch.") for value in values))
