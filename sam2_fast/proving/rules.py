"""What must be known of an op to prove its kernels: which calls are alike, and how to run one."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Call(NamedTuple):
    """Arguments of an op."""

    arguments: tuple[Any, ...]
    named: dict[str, Any]


def any_configuration(*arguments: Any) -> Hashable:
    """What kernels may depend on: dtypes and shapes without the first dimension of what is given
    directly, whole shapes inside lists, and everything that is no tensor."""
    return tuple(_part(argument, 1) for argument in arguments)


def _part(value: Any, drop: int) -> Hashable:
    if isinstance(value, Tensor):
        return value.dtype, *value.shape[drop:]
    if isinstance(value, list | tuple):
        return tuple(_part(item, 0) for item in value)
    if value is None or isinstance(value, bool | int | float | str | torch.dtype):
        return value
    return type(value).__name__


def whole(call: Call) -> Call:
    """The call as it is."""
    return call


@dataclass(frozen=True)
class Rule:
    """How calls of an op are told apart and proved."""

    configuration: Callable[..., Hashable] = any_configuration
    """Of the arguments of a call; calls of equal configurations are proved once. Cheap: it is asked
    for every call on a GPU. Made of tuples, numbers, texts, dtypes and None."""
    sample: Callable[[Call], Call] = whole
    """A call whose proof stands for all of the configuration. Small: the reference computes it in
    a wider dtype."""
    exact: Callable[..., Any] | None = None
    """Takes the arguments; None: the reference, on arguments in a wider dtype."""
    align: Callable[[Call, tuple[Any, ...]], tuple[Any, ...]] | None = None
    """Of a call and some of its results, what can be compared."""
    convolutions: bool = False
    """Whether the reference calls convolutions, for which torch has a TF32 switch of its own."""


def described(value: Hashable) -> str:
    """A configuration as text, different for different ones."""
    if isinstance(value, tuple):
        return f"({' '.join(described(part) for part in value)})"
    return repr(value).removeprefix("torch.")


def bits(number: int) -> int:
    """A coarse size: numbers between two powers of two are alike."""
    return int(number).bit_length()
