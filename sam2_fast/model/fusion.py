"""Whether an op may compute modules by reading their weights, without calling them.

It may if no program can tell the difference: the modules are those that the constructor made, or
others of the same classes, settings and shapes; they have no hooks; no method, attribute or class
has been replaced; they drop no values; operations are neither recorded nor differentiated; and all
tensors are ordinary ones. In every other case the modules are called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import zip_longest
from operator import is_
from typing import Any, Generic, NamedTuple, TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

from sam2_fast.ops.core import tracing
from sam2_fast.ops.core.autocast import in_compute_dtype
from sam2_fast.ops.core.lookups import watched
from sam2_fast.ops.core.module_state import (
    SETTINGS,
    ModuleState,
    Watched,
    has_global_hooks,
    has_hooks,
)
from sam2_fast.ops.core.native import is_differentiated, is_plain
from sam2_fast.ops.core.weights import Weights

W = TypeVar("W", bound=Weights)
Roots = Mapping[str, nn.Module]
"""Modules by the names that messages use."""

_MISSING = object()
_NOT_CALLED = frozenset({"__init__", "reset_parameters", "extra_repr", "__init_subclass__"})
_MODULE_CALLS = frozenset({"__call__", "_call_impl", "_wrapped_call_impl", "__getattr__"})
_attention = F.scaled_dot_product_attention
_code: dict[type, dict[str, object]] = {}
"""The functions of the classes that ops know, when this package was imported."""


def _functions_of(kind: type) -> dict[str, object]:
    """The functions that a class itself defines, as far as they can change what it computes."""
    functions = {
        name: value
        for name, value in vars(kind).items()
        if callable(value) or isinstance(value, property | classmethod | staticmethod)
    }
    if kind is nn.Module:
        return {name: functions[name] for name in _MODULE_CALLS}
    return {name: value for name, value in functions.items() if name not in _NOT_CALLED}


def _know(kind: type) -> None:
    functions = _functions_of(kind)
    forward = functions.get("forward", kind)
    if getattr(forward, "__module__", "").partition(".")[0] != kind.__module__.partition(".")[0]:
        functions["forward"] = _MISSING  # it had been replaced before this package was imported
    _code[kind] = functions


class Part(Watched):
    """A module of the model. Its public attributes are its settings."""

    def reason_against_op(self) -> str | None:
        """Why no op computes the module with the settings that it was built with, or None.

        It is called if all submodules are as they were built.
        """
        return None

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if cls.__module__.startswith("sam2_fast.model."):
            _know(cls)


for _kind in (*SETTINGS, Part):
    for _base in _kind.__mro__:
        if issubclass(_base, nn.Module):
            _know(_base)


class _Description(NamedTuple):
    """A module for which an op can stand in."""

    name: str
    kind: type
    settings: dict[str, object]
    shapes: dict[str, tuple[int, ...] | None]


class Examination(NamedTuple):
    """Whether modules must be called, and their state at that time."""

    roots: list[nn.Module]
    state: ModuleState
    reason: str | None


class Fusion(Generic[W]):
    """Whether an op may compute some modules, and the weights for it, gathered from them.

    Create it in the constructor that makes the modules: they are compared with what they are then.
    Methods get the current modules, under the names of the constructor. Results are cached until
    something changes; copies and pickles start with an empty cache.
    """

    def __init__(self, roots: Roots, shallow: tuple[str, ...] = ()) -> None:
        """roots: modules that stand for all their submodules, except those named in `shallow`."""
        self._shallow = shallow
        self._built = [_describe(*member) for member in self._members(roots)]
        self._examination: Examination | None = None
        self._weights: tuple[Examination, W] | None = None

    def reason(self, roots: Roots) -> str | None:
        """Why the modules must be called, or None. It does not depend on inputs."""
        return self._examine(roots).reason

    def examined(self, roots: Roots, *inputs: Tensor) -> Examination | None:
        """Evidence that ops may compute the modules for these inputs, or None if they may not.

        Gradients are not considered.
        """
        if tracing.recording_reason() is not None or not is_plain(*inputs):
            return None
        examination = self._examine(roots)
        return examination if examination.reason is None else None

    def weights(
        self,
        roots: Roots,
        gather: Callable[[], W],
        *inputs: Tensor,
        examination: Examination | None = None,
    ) -> W | None:
        """The weights for an op that computes the modules, or None if they must be called.

        gather: reads the weights from the modules. Matrices are returned in the dtype of the
            caller's autocast.
        examination: of modules that these belong to, from `examined` in the same call; None: they
            are examined here.
        """
        current = examination or self.examined(roots, *inputs)
        if current is None:
            return None
        weights = self._weights_of(current)
        if weights is None:
            # A write to `parameter.data` can change shapes, which no state of modules includes.
            current = self._examine(roots, again=True)
            if current.reason is not None:
                return None
            weights = gather()
            self._weights = examination or current, weights
        if weights.state is None or not weights.state.plain:
            return None
        if is_differentiated(*weights.tensors, *inputs):
            return None
        return in_compute_dtype(weights)

    def clear(self) -> None:
        """Drop the weights, after changes that cannot be detected, such as `module.half()`."""
        self._weights = None

    @property
    def cached_values(self) -> list[object]:
        """The weights and the values derived from them; empty if nothing is cached."""
        gathered = self._weights
        if gathered is None:
            return []
        weights = gathered[1]
        derived = [] if weights.state is None else weights.state.cached_values
        return [weights, *derived]

    def __deepcopy__(self, memo: object) -> Fusion[W]:
        return _restored(self._built, self._shallow)  # descriptions are never changed

    def __reduce__(self) -> tuple[Callable[..., Fusion[Any]], tuple[object, ...]]:
        return _restored, (self._built, self._shallow)

    def _members(self, roots: Roots) -> list[tuple[str, nn.Module]]:
        members = []
        for name, root in roots.items():
            if name in self._shallow:
                members.append((name, root))
            else:
                members += [(member, part) for member, part in root.named_modules(prefix=name)]
        return members

    def _weights_of(self, examination: Examination) -> W | None:
        """The weights that were gathered after an examination, unless a tensor has changed."""
        gathered = self._weights  # read once: another thread may drop it
        if gathered is None:
            return None
        known, weights = gathered
        state = weights.state
        unchanged = known is examination and state is not None and state.is_unchanged()
        return weights if unchanged else None

    def _examine(self, roots: Roots, again: bool = False) -> Examination:
        examination = self._examination
        if (
            again
            or examination is None
            or not all(map(is_, examination.roots, roots.values()))
            or not examination.state.is_unchanged()
        ):
            members = self._members(roots)
            state = ModuleState([module for _, module in members])
            reason = _reason(self._built, members)
            examination = self._examination = Examination([*roots.values()], state, reason)
        return examination


def _restored(built: list[_Description], shallow: tuple[str, ...]) -> Fusion[Any]:
    fusion: Fusion[Any] = Fusion({}, shallow)
    fusion._built = built
    return fusion


def _describe(name: str, module: nn.Module) -> _Description:
    known = SETTINGS.get(type(module))
    names = known or ()
    if known is None:
        # a dictionary is a cache
        own = vars(module).items()
        names = tuple(n for n, v in own if not n.startswith("_") and not isinstance(v, dict))
    settings = {n: _comparable(vars(module)[n]) for n in names if n != "training"}
    return _Description(name, type(module), settings, _shapes_of(module))


def _comparable(value: object) -> object:
    """The value of a setting; of a list a copy, which later changes of the list do not reach."""
    return tuple(value) if isinstance(value, list) else value


def _shapes_of(module: nn.Module) -> dict[str, tuple[int, ...] | None]:
    parameters = module._parameters.items()
    return {name: None if p is None else tuple(p.shape) for name, p in parameters}


def _reason(built: list[_Description], members: list[tuple[str, nn.Module]]) -> str | None:
    """Why the modules must be called, or None."""
    if has_global_hooks():
        return "hooks are registered for all modules"
    if F.scaled_dot_product_attention is not _attention:
        return "torch.nn.functional.scaled_dot_product_attention has been replaced"
    for lookup in watched(type(module) for _, module in members):
        if (name := lookup.replaced()) is not None:
            return f"{name} has been replaced"
    for old, new in zip_longest(built, members):
        if old is None or new is None or old.name != new[0]:
            extra = "there is no module" if new is None else f"there is a module {new[0]!r}"
            return f"{extra}, expected {'no further one' if old is None else repr(old.name)}"
        change = _change_of(old, new[1])
        if change is not None:
            return f"{old.name}: {change}" if old.name else change
    for name, module in members:
        reason = module.reason_against_op() if isinstance(module, Part) else None
        if reason is not None:
            return f"{name}: {reason}" if name else reason
    return None


def unusual_setting(**settings: tuple[object, object]) -> str | None:
    """The first setting that an op does not compute, with the one that it does, or None.

    settings: the current value and that of the op, by name.
    """
    for name, (value, expected) in settings.items():
        if value != expected:
            return f"{name} is {value}, its op computes {expected}"
    return None


def _change_of(old: _Description, module: nn.Module) -> str | None:
    """How a module differs from its description, or why it must be called, or None."""
    kind = type(module)
    if kind is not old.kind or kind not in _code:
        return f"it is a {kind.__module__}.{kind.__qualname__}, expected a {old.kind.__name__}"
    if has_hooks(module):
        return "it has a hook"
    own = vars(module)
    for name in own:
        if hasattr(kind, name):
            return f"its attribute {name} replaces that of its class"
    if (function := _replaced_function(kind)) is not None:
        return f"{function} has been replaced"
    for name, value in old.settings.items():
        current = _comparable(own.get(name, _MISSING))
        if current is not value and current != value:
            return f"{name} is {getattr(module, name, 'missing')}, expected {value}"
    if (shapes := _shapes_of(module)) != old.shapes:
        return f"its parameters have the shapes {shapes}, expected {old.shapes}"
    if module.training and getattr(module, "drops_values", False):
        return "it drops values in training mode"
    if isinstance(module, nn.Dropout) and module.training and module.p > 0:
        return "it drops values in training mode"
    return None


def _replaced_function(kind: type) -> str | None:
    """The name of a function of the class, or of a base, that is not the original, or None."""
    for base in kind.__mro__:
        original = _code.get(base)
        if original is None:
            continue
        current = _functions_of(base)
        for name, function in original.items():
            if current.get(name) is not function:
                return f"{base.__name__}.{name}"
        for name in current.keys() - original.keys():
            if any(name in vars(other) for other in kind.__mro__ if other is not base):
                return f"{base.__name__}.{name}"
    return None


class OpModule(Part, Generic[W]):
    """A module that one op computes with the weights of all its submodules.

    The constructor of a subclass ends with `self._fusion = Fusion({"": self})`.
    """

    _fusion: Fusion[W]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> OpModule[W]:
        self._fusion.clear()
        return super()._apply(fn, recurse)

    def gather_weights(self) -> W:
        """The weights of the op, by name."""
        raise NotImplementedError

    def op_weights(self, *inputs: Tensor, examination: Examination | None = None) -> W | None:
        """The weights for the op, or None if the submodules must be called.

        examination: of a module that this one belongs to, from `Fusion.examined`.
        """
        return self._fusion.weights(
            {"": self}, self.gather_weights, *inputs, examination=examination
        )

    def reason_to_call(self) -> str | None:
        """Why the submodules must be called, or None if an op may compute them."""
        return self._fusion.reason({"": self})
