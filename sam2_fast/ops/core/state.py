"""Detects changes of tensors, and keeps values computed from unchanged tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import is_
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from sam2_fast.ops.core.native import is_plain, native

_address = torch._C.TensorBase.data_ptr
_version = torch._C.TensorBase._version


class Facts(NamedTuple):
    """Properties of weights that backends check."""

    plain: bool  # ordinary tensors with their values in memory
    kinds: frozenset[str]  # their classes
    devices: frozenset[torch.device]
    dtypes: frozenset[torch.dtype]
    matrix_dtypes: frozenset[torch.dtype]  # of the matrices among them


class _Snapshot(NamedTuple):
    addresses: list[int]
    versions: list[int | None]
    values: dict[object, Any]


class State:
    """Addresses and version counters of some tensors, and values computed from them.

    The values are dropped when a tensor has been moved or written.
    """

    def __init__(
        self, tensors: Sequence[Tensor], check: Callable[[], object] | None = None
    ) -> None:
        """check: called when a tensor has been moved or written; may raise."""
        self.tensors = list(tensors)
        self._check = check
        self.plain = is_plain(*self.tensors)
        # inference-mode tensors have no version counter
        self.counts_writes = self.plain and not any(x.is_inference() for x in self.tensors)
        self._snapshot = self._take_snapshot()

    def _take_snapshot(self) -> _Snapshot:
        if not self.plain:
            return _Snapshot([], [], {})
        versions = [None if x.is_inference() else x._version for x in self.tensors]
        return _Snapshot([x.data_ptr() for x in self.tensors], versions, {})

    def is_unchanged(self) -> bool:
        """Whether no tensor was moved or written. False if some are not plain."""
        if not self.plain:
            return False
        snapshot = self._snapshot
        same = native_or("same_tensors", _same_tensors)
        return same(_address, _version, self.tensors, snapshot.addresses, snapshot.versions)

    def is_unchanged_for(self, tensors: Sequence[Tensor]) -> bool:
        """Whether these are the tensors of this state, and unchanged."""
        if len(tensors) != len(self.tensors) or not all(map(is_, self.tensors, tensors)):
            return False
        return self.is_unchanged()

    def values(self) -> dict[object, Any]:
        """Values computed from the current tensors, by name; a dictionary to add to."""
        if not self.is_unchanged():
            if self._check is not None:
                self._check()
            self._snapshot = self._take_snapshot()
        return self._snapshot.values

    @property
    def cached_values(self) -> list[Any]:
        """The values in the cache, whether or not the tensors have changed since."""
        return list(self._snapshot.values.values())


def native_or(name: str, fallback: Callable[..., bool]) -> Callable[..., bool]:
    """The function `name` of the native module, or `fallback` if the package was not built."""
    module = native()
    return fallback if module is None else cast("Callable[..., bool]", getattr(module, name))


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
    return all(expected is None or read(tensor) == expected for tensor, expected in pairs)
