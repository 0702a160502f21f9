"""Objects from configurations: nested dictionaries, in which `_target_` names a class."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from torch import nn

from sam2_fast.files.reasons import reason_of

OFFICIAL = "sam2"
SHIM = "sam2_fast.compat"


def instantiate(tree: Any, path: str = "model") -> Any:
    """The object of a configuration, as Hydra's `instantiate` makes it.

    tree: a dictionary with `_target_`, a class or its path, becomes an object of the class with the
        other entries as arguments; in other dictionaries and in lists, the values are instantiated.
    path: of the tree, for messages. A class must be one of `torch.nn.Module`.
    Raises ValueError for a target that cannot be used, and for arguments that it does not accept.
    """
    if isinstance(tree, list):
        return [instantiate(value, f"{path}[{i}]") for i, value in enumerate(tree)]
    if not isinstance(tree, Mapping):
        return tree
    arguments = {
        key: instantiate(value, f"{path}.{key}") for key, value in tree.items() if key != "_target_"
    }
    if "_target_" not in tree:
        return arguments
    if special := [key for key in arguments if key.startswith("_")]:
        raise ValueError(
            f"{path}: expected _target_ and arguments, got {', '.join(special)}; use "
            "hydra.utils.instantiate for configurations that have these keys"
        )
    target = find_class(tree["_target_"], path)
    try:
        inspect.signature(target).bind(**arguments)
        return target(**arguments)
    except (TypeError, AttributeError, AssertionError) as error:
        raise ValueError(f"{path}: {target.__qualname__}(): {reason_of(error)}") from error


def find_class(target: Any, path: str = "model") -> type[nn.Module]:
    """The class of a `_target_`: a class, or a path such as `my.module.MyPredictor`.

    Paths of the official package name the classes of this library. Raises ValueError with the
    reason if there is no such class, or if it is not one of `torch.nn.Module`.
    """
    if isinstance(target, type) and issubclass(target, nn.Module):
        return target
    name = f"{path}._target_"
    if not isinstance(target, str) or not all(part.isidentifier() for part in target.split(".")):
        raise ValueError(f"{name}: expected the path of a class, such as a.b.Name, got {target!r}")
    kind = _import(target, name)
    if not isinstance(kind, type) or not issubclass(kind, nn.Module):
        raise ValueError(
            f"{name}: expected a class of torch.nn.Module, got {target}, which is {kind!r}; use "
            "hydra.utils.instantiate for other targets"
        )
    return kind


def _import(target: str, name: str) -> Any:
    parts = target.split(".")
    reason = ""
    for length in range(len(parts) - 1, 0, -1):
        module_name = ".".join(parts[:length])
        if parts[0] == OFFICIAL:
            module_name = SHIM + module_name[len(OFFICIAL) :]
        try:
            value: Any = import_module(module_name)
        except ModuleNotFoundError as error:
            reason = reason or reason_of(error)
            continue
        try:
            for attribute in parts[length:]:
                value = getattr(value, attribute)
        except AttributeError as error:
            raise ValueError(
                f"{name}: expected an existing class, got {target}: {reason_of(error)}"
            ) from error
        return value
    raise ValueError(f"{name}: expected an existing class, got {target}: {reason or 'no module'}")
