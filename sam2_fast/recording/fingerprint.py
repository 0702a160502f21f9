"""Whether anything of a model has changed since a CUDA graph was recorded."""

from __future__ import annotations

from torch import nn

from sam2_fast.ops.core.native import native
from sam2_fast.ops.core.state import Members, State


class _Part:
    """Some modules and their tensors as they were."""

    def __init__(self, modules: list[nn.Module]) -> None:
        self._members = Members(modules)
        self._state = State(self._members.tensors)

    def same(self) -> bool:
        return self._members.is_unchanged() and self._state.is_unchanged()

    @property
    def plain(self) -> bool:
        """Whether writes to all tensors can be seen."""
        return self._state.plain


class Fingerprint:
    """A model's modules and tensors as they were: which, where, and how often they had been
    written.

    It is compared for every frame: some 1,700 names and 900 tensors of the large model, two thirds
    of them of its image encoder, which is left out where nothing is encoded.
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
        """Whether all of it is as it was. encoder: or all but the modules inside
        `model.image_encoder`.
        """
        return model is self.of and self._rest.same() and (not encoder or self._encoder.same())

    def hooked(self) -> str | None:
        """Why a CUDA graph would leave out what a forward hook does; None without hooks."""
        module = native()
        hooks = any(self._hooks) if module is None else not module.all_empty(self._hooks)
        return "a module has a forward hook, which a recording would not call" if hooks else None

    def opaque(self) -> str | None:
        """Why it cannot be known whether a weight was written; None where it can."""
        if self._encoder.plain and self._rest.plain:
            return None
        return "a weight is a tensor subclass or lazily negated, whose writes cannot be seen"

    def hold(self, kept: list[object]) -> None:
        """Keep alive what CUDA graphs have the addresses of."""
        known = {id(x) for x in self._kept}
        self._kept += [x for x in kept if id(x) not in known]
