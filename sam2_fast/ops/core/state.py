"""Whether tensors are what they were, and what was computed from them meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import is_
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sam2_fast.ops.core.native import is_plain, native

_address, _version = torch._C.TensorBase.data_ptr, torch._C.TensorBase._version


class Facts(NamedTuple):
    """What backends ask of weights."""

    plain: bool  # ordinary tensors, whose memory holds their numbers
    kinds: frozenset[str]  # their classes
    devices: frozenset[torch.device]
    dtypes: frozenset[torch.dtype]
    matrix_dtypes: frozenset[torch.dtype]  # of the matrices among them


class _Known(NamedTuple):
    addresses: list[int]
    versions: list[int | None]
    values: dict[object, Any]


class State:
    """Some tensors as they were: where they are, and how often they had been written.

    Values computed from them are held while they stay as they are.
    """

    def __init__(
        self, tensors: Sequence[Tensor], check: Callable[[], object] | None = None
    ) -> None:
        """check: called when the tensors were found to have been moved or written; may raise."""
        self.tensors = list(tensors)
        self._check = check
        self.plain = is_plain(*self.tensors)
        # tensors of inference mode count no writes
        self.counts_writes = self.plain and not any(x.is_inference() for x in self.tensors)
        self._known = self._look()

    def _look(self) -> _Known:
        if not self.plain:
            return _Known([], [], {})
        versions = [None if x.is_inference() else x._version for x in self.tensors]
        return _Known([x.data_ptr() for x in self.tensors], versions, {})

    def same(self) -> bool:
        """Whether no tensor was moved or written. False where their memory cannot be known."""
        if not self.plain:
            return False
        module, known = native(), self._known
        same: Callable[..., bool] = _same_tensors if module is None else module.same_tensors
        return same(_address, _version, self.tensors, known.addresses, known.versions)

    def same_of(self, tensors: Sequence[Tensor]) -> bool:
        """As `same`, and whether it is the state of just these tensors."""
        if len(tensors) != len(self.tensors) or not all(map(is_, self.tensors, tensors)):
            return False
        return self.same()

    def values(self) -> dict[object, Any]:
        """What was computed from the tensors as they are now, by name; a dictionary to add to."""
        if not self.same():
            if self._check is not None:
                self._check()
            self._known = self._look()
        return self._known.values

    @property
    def held(self) -> list[Any]:
        """The values that are held, whether or not the tensors are what they were."""
        return list(self._known.values.values())


class Members:
    """Submodules, parameters and buffers of some modules as they were."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        groups = [group for m in modules for group in (m._modules, m._parameters, m._buffers)]
        named = [(group, name, value) for group in groups for name, value in group.items()]
        self._groups = [group for group, _, _ in named]
        self._names = [name for _, name, _ in named]
        self._values = [value for _, _, value in named]
        self._owners, self._lengths = groups, [len(group) for group in groups]

    @property
    def tensors(self) -> list[Tensor]:
        """Parameters and buffers."""
        return [value for value in self._values if isinstance(value, Tensor)]

    def same(self) -> bool:
        """Whether every name still holds the object that it held, and no name was added."""
        if list(map(len, self._owners)) != self._lengths:
            return False
        module = native()
        same: Callable[..., bool] = _same_members if module is None else module.same_members
        return same(self._groups, self._names, self._values)


def _same_members(groups: list[dict[str, Any]], names: list[str], values: list[Any]) -> bool:
    return all(map(is_, map(dict.get, groups, names), values))


def _same_tensors(
    address: Any,
    version: Any,
    tensors: list[Tensor],
    addresses: list[int],
    versions: list[int | None],
) -> bool:
    if list(map(address, tensors)) != addresses:
        return False
    read = version.__get__
    pairs = zip(tensors, versions, strict=True)
    return all(was is None or read(tensor) == was for tensor, was in pairs)
