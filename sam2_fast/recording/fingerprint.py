"""Whether a model has changed since a CUDA graph of it was captured."""

from __future__ import annotations

from torch import nn

from sam2_fast.ops.core.module_state import ModuleState
from sam2_fast.ops.core.state import State


class _ModuleSnapshot:
    """The state of some modules and their tensors when this object was created."""

    def __init__(self, modules: list[nn.Module]) -> None:
        self._members = ModuleState(modules)
        self._state = State(self._members.tensors)

    def same(self) -> bool:
        return self._members.same_members() and self._state.is_unchanged()

    @property
    def plain(self) -> bool:
        """Whether writes to all tensors can be detected."""
        return self._state.plain


class Fingerprint:
    """A snapshot of a model: identity, address and number of writes of all modules and tensors.

    It is compared for every frame: some 1,700 names and 900 tensors of the large model. Two thirds
    of them belong to the image encoder, which is left out if no image is encoded.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        modules = list(model.modules())
        encoder = getattr(model, "image_encoder", None)
        encoder_modules = set(encoder.modules()) if isinstance(encoder, nn.Module) else set()
        self._encoder = _ModuleSnapshot([m for m in modules if m in encoder_modules])
        self._rest = _ModuleSnapshot([m for m in modules if m not in encoder_modules])
        self._referenced: list[object] = []

    def same(self, model: nn.Module, encoder: bool = True) -> bool:
        """Whether `model` is this model and has not changed.

        encoder: also compare the modules of `model.image_encoder`.
        """
        return model is self.model and self._rest.same() and (not encoder or self._encoder.same())

    def opaque_reason(self) -> str | None:
        """Why writes to a weight cannot be detected, or None."""
        if self._encoder.plain and self._rest.plain:
            return None
        return "a weight is a tensor subclass or lazily negated, so that writes cannot be detected"

    def keep_alive(self, objects: list[object]) -> None:
        """Reference objects that CUDA graphs read by address."""
        known = {id(x) for x in self._referenced}
        self._referenced += [x for x in objects if id(x) not in known]
