"""Whether anything of a model has changed since a CUDA graph was recorded."""

from __future__ import annotations

from collections.abc import Callable
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

from sam2_fast.ops.core.native import native

_address, _version = torch._C.TensorBase.data_ptr, torch._C.TensorBase._version


class _Part:
    """Some modules and their tensors as they were."""

    def __init__(self, modules: list[nn.Module]) -> None:
        groups: list[dict[str, Any]] = [g for m in modules for g in (m._modules, m._parameters, m._buffers)]
        named = [(group, name, value) for group in groups for name, value in group.items()]
        self._groups, self._names = [group for group, _, _ in named], [name for _, name, _ in named]
        self._values = [value for _, _, value in named]
        self._tensors = [value for value in self._values if isinstance(value, Tensor)]
        self._addresses = [tensor.data_ptr() for tensor in self._tensors]
        # tensors of inference mode count no writes
        self._versions = [None if tensor.is_inference() else tensor._version for tensor in self._tensors]

    def same(self) -> bool:
        module = native()
        members: Callable[..., bool] = _same_members if module is None else module.same_members
        tensors: Callable[..., bool] = _same_tensors if module is None else module.same_tensors
        if not members(self._groups, self._names, self._values):
            return False
        return tensors(_address, _version, self._tensors, self._addresses, self._versions)


class Fingerprint:
    """A model's modules and tensors as they were: which, where, and how often they had been written.

    It is compared for every frame: some 1,700 names and 900 tensors of the large model, two thirds of
    them of its image encoder, which is left out where nothing is encoded.
    """

    def __init__(self, model: nn.Module) -> None:
        self.of = model
        modules = list(model.modules())
        encoder = getattr(model, "image_encoder", None)
        inner = set(encoder.modules()) if isinstance(encoder, nn.Module) else set()
        self._encoder = _Part([m for m in modules if m in inner])
        self._rest = _Part([m for m in modules if m not in inner])
        self._hooks = [hooks for m in modules for hooks in (m._forward_hooks, m._forward_pre_hooks)]
        self._kept: list[object] = []

    def same(self, model: nn.Module, encoder: bool = True) -> bool:
        """Whether all of it is as it was. encoder: or all but the modules inside `model.image_encoder`."""
        return model is self.of and self._rest.same() and (not encoder or self._encoder.same())

    def hooked(self) -> str | None:
        """Why a CUDA graph would leave out what a forward hook does; None without hooks."""
        module = native()
        hooks = any(self._hooks) if module is None else not module.all_empty(self._hooks)
        return "a module has a forward hook, which a recording would not call" if hooks else None

    def hold(self, kept: list[object]) -> None:
        """Keep alive what CUDA graphs have the addresses of."""
        known = {id(x) for x in self._kept}
        self._kept += [x for x in kept if id(x) not in known]


def _same_members(groups: list[dict[str, Any]], names: list[str], values: list[Any]) -> bool:
    return all(map(is_, map(dict.get, groups, names), values))


def _same_tensors(address: Any, version: Any, tensors: list[Tensor], addresses: list[int], versions: list[int | None]) -> bool:
    if list(map(address, tensors)) != addresses:
        return False
    read = version.__get__
    return all(was is None or read(tensor) == was for tensor, was in zip(tensors, versions, strict=True))
