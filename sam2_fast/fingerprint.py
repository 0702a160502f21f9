"""Whether anything of a model has changed since a CUDA graph was recorded."""

from __future__ import annotations

from operator import is_
from typing import Any

from torch import Tensor, nn

_address = Tensor.data_ptr


class Fingerprint:
    """A model's modules and tensors as they were: which, where, and how often they had been written.

    It is compared for every frame, so in few steps: some 0.1 us for each tensor and name.
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
        self._addresses, self._versions = self._now()
        self._hooks = [hooks for part in parts for hooks in (part._forward_hooks, part._forward_pre_hooks)]
        self._kept: list[object] = []

    def same(self, model: nn.Module) -> bool:
        """Whether all of it is as it was."""
        alike = all(map(is_, map(dict.get, self._groups, self._names), self._values))
        return model is self.of and alike and (self._addresses, self._versions) == self._now()

    def _now(self) -> tuple[list[int], list[int]]:
        return list(map(_address, self._tensors)), [tensor._version for tensor in self._counted]

    def hooked(self) -> str | None:
        """Why a CUDA graph would leave out what a forward hook does; None without hooks."""
        return "a module has a forward hook, which a recording would not call" if any(self._hooks) else None

    def hold(self, kept: list[object]) -> None:
        """Keep alive what CUDA graphs have the addresses of."""
        known = {id(x) for x in self._kept}
        self._kept += [x for x in kept if id(x) not in known]
