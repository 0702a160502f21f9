"""Detects every change of a module that could change what it computes."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from operator import is_
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as module_hooks
from torch.utils.hooks import RemovableHandle

from sam2_fast.ops.core.lookups import watched
from sam2_fast.ops.core.native import native
from sam2_fast.ops.core.state import native_or


class Watched(nn.Module):
    """A module that counts assignments to attributes of all its instances.

    So a `ModuleState` compares attributes only after one of them has been assigned. It is counted
    before, in case an error interrupts it, and after, in case another thread compares meanwhile.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        _last_write[0] = next(_writes)
        super().__setattr__(name, value)
        _last_write[0] = next(_writes)

    def __delattr__(self, name: str) -> None:
        _last_write[0] = next(_writes)
        super().__delattr__(name)
        _last_write[0] = next(_writes)


_writes = count(1)
_last_write = [0]

SETTINGS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Linear: (),
    nn.Embedding: (),
    nn.LayerNorm: ("eps",),
    nn.Conv2d: ("stride", "padding", "dilation", "groups", "padding_mode"),
    nn.ConvTranspose2d: ("stride", "padding", "output_padding", "dilation", "groups"),
    nn.MaxPool2d: ("kernel_size", "stride", "padding", "dilation", "ceil_mode"),
    nn.GELU: ("approximate",),
    nn.ReLU: (),
    nn.Dropout: ("p", "training"),
    nn.Identity: (),
    nn.ModuleList: (),
    nn.Sequential: (),
}
"""Modules of torch that the model consists of, and the attributes that decide what they compute."""

_CONTAINERS = (nn.ModuleList, nn.Sequential)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS = (
    module_hooks._global_forward_hooks,
    module_hooks._global_forward_pre_hooks,
    module_hooks._global_backward_hooks,
    module_hooks._global_backward_pre_hooks,
)


def has_global_hooks() -> bool:
    """Whether hooks are registered for all modules."""
    return any(_GLOBAL_HOOKS)


def has_hooks(module: nn.Module) -> bool:
    """Whether a module has forward or backward hooks of its own."""
    return any(getattr(module, name) for name in _HOOKS)


class ModuleState:
    """What decides the computation of some modules, at the time of creation.

    That is: their classes and methods, attributes, hooks, submodules, parameters and buffers.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        attributes = [vars(module) for module in modules]
        self._attributes = attributes
        self._attribute_entries = _flat(attributes)
        groups = [group for m in modules for group in (m._modules, m._parameters, m._buffers)]
        self._groups = [group for group in groups if group]
        self._members = _flat(self._groups)
        self._empty_groups = [group for group in groups if not group]
        hooks = [vars(module)[name] for module in modules for name in _HOOKS]
        # Hooks that exist may be removed. New ones are counted when they are registered.
        self._unhooked = [dictionary for dictionary in hooks if not dictionary]
        hooked = [dictionary for dictionary in (*hooks, *_GLOBAL_HOOKS) if dictionary]
        filled = [*self._groups, *hooked]
        # A layer of torch ignores members that are added to it.
        own = (m for m in modules if type(m) not in SETTINGS or type(m) in _CONTAINERS)
        may_get_members = (x for m in own for x in (m._modules, m._parameters, m._buffers))
        empty = [group for group in (*may_get_members, *_GLOBAL_HOOKS) if not group]
        kinds = [type(module) for module in modules]
        bases = (base for kind in kinds for base in kind.__mro__)
        classes: list[type] = list({b: None for b in bases if issubclass(b, nn.Module)})
        self._compared = (
            list(modules),
            kinds,
            attributes,
            _lengths(attributes),
            empty,
            filled,
            _flat(filled),
            *_settings_of(modules),
            classes,
            _flat(map(vars, classes)),
            _class_versions(classes),
        )
        self._same_state = native_or("same_state", _same_state)
        self._counts = RemovableHandle.next_id, _last_write[0]

    @property
    def tensors(self) -> list[Tensor]:
        """Parameters and buffers."""
        return [value for value in self._members[1::2] if isinstance(value, Tensor)]

    def same_members(self) -> bool:
        """Whether submodules, parameters and buffers are the same objects under the same names."""
        same = native_or("same_dictionaries", _same_dictionaries)
        return not any(self._empty_groups) and same(self._groups, self._members)

    def is_unchanged(self) -> bool:
        """Whether nothing has changed."""
        # They grow when a hook is registered or an attribute of our modules is assigned.
        counts = RemovableHandle.next_id, _last_write[0]
        if counts != self._counts:
            same = native_or("same_dictionaries", _same_dictionaries)
            if any(self._unhooked) or not same(self._attributes, self._attribute_entries):
                return False
            self._counts = counts
        return self._same_state(*self._compared)


def _settings_of(modules: Sequence[nn.Module]) -> tuple[list[Any], list[str], list[Any]]:
    """Dictionaries, names in them, and their values: settings of layers, and watched globals."""
    settings = [
        (vars(module), name, vars(module)[name])
        for module in modules
        for name in SETTINGS.get(type(module), ())
    ]
    attention = "scaled_dot_product_attention"  # programs replace it by kernels of their own
    settings.append((vars(F), attention, vars(F)[attention]))
    for lookup in watched(map(type, modules)):
        variables = lookup.variables
        settings += [(variables, name, variables.get(name)) for name in lookup.originals]
    groups, names, values = zip(*settings, strict=True)
    return list(groups), list(names), list(values)


def _flat(dictionaries: Iterable[Mapping[Any, Any]]) -> list[Any]:
    """Keys and values of the dictionaries, in turn."""
    return [x for dictionary in dictionaries for entry in dictionary.items() for x in entry]


def _lengths(dictionaries: Iterable[Mapping[str, Any]]) -> bytes:
    """The numbers of entries, int32."""
    return array("i", map(len, dictionaries)).tobytes()


def _class_versions(classes: list[type]) -> list[int]:
    module = native()
    return [] if module is None else list(module.class_versions(classes))


def _same_state(
    modules: list[nn.Module],
    kinds: list[type],
    attributes: list[dict[str, Any]],
    lengths: bytes,
    empty: list[dict[Any, Any]],
    filled: list[dict[Any, Any]],
    entries: list[Any],
    groups: list[dict[str, Any]],
    names: list[str],
    values: list[Any],
    classes: list[type],
    code: list[Any],
    _: list[int],
) -> bool:
    return (
        list(map(type, modules)) == kinds
        and _lengths(attributes) == lengths
        and not any(empty)
        and _same_dictionaries(filled, entries)
        and all(map(is_, map(dict.get, groups, names), values))
        and _same_entries(_flat(map(vars, classes)), code)
    )


def _same_dictionaries(dictionaries: list[dict[Any, Any]], entries: list[Any]) -> bool:
    return _same_entries(_flat(dictionaries), entries)


def _same_entries(current: list[Any], entries: list[Any]) -> bool:
    return len(current) == len(entries) and all(map(is_, current, entries))
