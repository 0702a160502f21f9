"""Whether anything of a model has changed since a CUDA graph was recorded."""

from __future__ import annotations

from collections.abc import Callable
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

from sam2_fast.ops.native import native

_address, _version = torch._C.TensorBase.data_ptr, torch._C.TensorBase._version


class Fingerprint:
    """A model's modules and tensors as they were: which, where, and how often they had been written.

    It is compared for every frame: some 1,700 names and 900 tensors of the large model.
    """

    def __init__(self, model: nn.Module) -> None:
        parts = list(model.modules())
        self.of = model
        groups: list[dict[str, Any]] = [g for p in parts for g in (p._modules, p._parameters, p._buffers)]
        named = [(group, name, value) for group in groups for name, value in group.items()]
        self._groups, self._names = [group for group, _, _ in named], [name for _, name, _ in named]
        self._values = [value for _, _, value in named]
        self._tensors = [value for value in self._values if isinstance(value, Tensor)]
        self._counted = [tensor for tensor in self._tensors if not tensor.is_inference()]
        self._addresses = [tensor.data_ptr() for tensor in self._tensors]
        self._versions = [tensor._version for tensor in self._counted]
        self._hooks = [hooks for part in parts for hooks in (part._forward_hooks, part._forward_pre_hooks)]
        self._kept: list[object] = []

    def same(self, model: nn.Module) -> bool:
        """Whether all of it is as it was."""
        module = native()
        members: Callable[..., bool] = _same_members if module is None else module.same_members
        integers: Callable[..., bool] = _same_integers if module is None else module.same_integers
        return (
            model is self.of
            and members(self._groups, self._names, self._values)
            and integers(_address, self._tensors, self._addresses)
            and integers(_version, self._counted, self._versions)
        )

    def hooked(self) -> str | None:
        """Why a CUDA graph would leave out what a forward hook does; None without hooks."""
        return "a module has a forward hook, which a recording would not call" if any(self._hooks) else None

    def hold(self, kept: list[object]) -> None:
        """Keep alive what CUDA graphs have the addresses of."""
        known = {id(x) for x in self._kept}
        self._kept += [x for x in kept if id(x) not in known]


def _same_members(groups: list[dict[str, Any]], names: list[str], values: list[Any]) -> bool:
    return all(map(is_, map(dict.get, groups, names), values))


def _same_integers(descriptor: Any, objects: list[Any], expected: list[int]) -> bool:
    read = descriptor if callable(descriptor) else descriptor.__get__
    return list(map(read, objects)) == expected
