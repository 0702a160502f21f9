"""What must be known of an op to prove its kernels: which calls are alike, and how to run one."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_is_leaf, tree_leaves, tree_map_only


class Call(NamedTuple):
    """Arguments of an op."""

    arguments: tuple[Any, ...]
    named: dict[str, Any]


def any_configuration(*arguments: Any, **named: Any) -> Hashable:
    """What kernels may depend on: dtypes, shapes, and everything that is no tensor.

    A batch is left out: the first dimension of the first tensor, and of others given directly that
    have as many rows. Shapes inside lists are taken whole.
    """
    batch = next((x.shape[0] for x in arguments if isinstance(x, Tensor) and x.ndim), None)
    parts = tuple(_part(argument, batch) for argument in arguments)
    return parts + tuple((name, _part(named[name], batch)) for name in sorted(named))


def _part(value: Any, batch: int | None = None) -> Hashable:
    if isinstance(value, Tensor):
        batched = batch is not None and value.ndim > 0 and value.shape[0] == batch
        return value.dtype, *value.shape[1 if batched else 0 :]
    if isinstance(value, list | tuple):
        return tuple(_part(item) for item in value)
    if not tree_is_leaf(value):  # the weights of an op
        return tuple(_part(item) for item in tree_leaves(value))
    if value is None or isinstance(value, bool | int | float | str | torch.dtype):
        return value
    return type(value).__name__


def nothing(call: Call) -> list[Call]:
    """No further calls."""
    del call
    return []


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
    more: Callable[[Call], list[Call]] = nothing
    """Further calls on which a kernel must be right; forms are chosen by `sample` alone."""
    exact: Callable[..., Any] | None = None
    """Takes the arguments; None: the reference, on arguments in a wider dtype."""
    align: Callable[[Call, tuple[Any, ...]], tuple[Any, ...]] | None = None
    """Of a call and some of its results, what can be compared."""
    convolutions: bool = False
    """Whether the reference calls convolutions, for which torch has a TF32 switch of its own."""


FEW = 2
"""Rows of a batch on which a kernel is proved."""


def first_rows(count: int) -> Callable[[Call], Call]:
    """The first images or objects, for ops whose first `count` arguments are batches."""

    def sample(call: Call) -> Call:
        batch, rest = call.arguments[:count], call.arguments[count:]
        return Call((*(x[:FEW] for x in batch), *rest), call.named)

    return sample


_rules: dict[str, Rule] = {}
_OTHERS = Rule()


def declare(op: str, rule: Rule) -> None:
    """Say how `op` is proved. Ops without a rule are told apart by `any_configuration`."""
    _rules[op] = rule


def rule_of(op: str) -> Rule:
    """How `op` is proved."""
    return _rules.get(op, _OTHERS)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in lists, tuples, dictionaries and the weights of ops."""
    return (x for x in tree_leaves(value) if isinstance(x, Tensor))


def mapped(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """`value` with every tensor in it changed."""
    return tree_map_only(Tensor, change, value)


def described(value: Hashable) -> str:
    """A configuration as text, different for different ones."""
    if isinstance(value, tuple):
        return f"({' '.join(described(part) for part in value)})"
    return repr(value).removeprefix("torch.")


def bits(number: int) -> int:
    """A coarse size: numbers between two powers of two are alike."""
    return int(number).bit_length()
