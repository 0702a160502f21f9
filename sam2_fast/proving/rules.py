"""Rules for the proofs of an op: which calls share one proof, and which call it runs on."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_is_leaf, tree_leaves, tree_map_only


class Call(NamedTuple):
    """Arguments of a call of an op."""

    arguments: tuple[Any, ...]
    named: dict[str, Any]


def any_configuration(*arguments: Any, **named: Any) -> Hashable:
    """Everything that kernels may depend on: dtypes, shapes, and arguments that are not tensors.

    The size of the batch is left out: the first dimension of the first tensor, and of all other
    tensor arguments with the same one. Shapes of tensors inside lists are used as they are.
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


def no_calls(call: Call) -> list[Call]:
    """No further calls: the default of `Rule.more`."""
    del call
    return []


def same_call(call: Call) -> Call:
    """The call itself: the default of `Rule.sample`."""
    return call


@dataclass(frozen=True)
class Rule:
    """Which calls of an op share one proof, and how it is done."""

    configuration: Callable[..., Hashable] = any_configuration
    """Maps the arguments of a call to its configuration; one proof is valid for all calls with the
    same one. It must be cheap, since every call on a GPU computes it. It consists of tuples,
    numbers, strings, dtypes and None."""
    sample: Callable[[Call], Call] = same_call
    """Maps a call to the call of the proof. That one should be small, since the exact reference
    computes it in a more precise dtype."""
    more: Callable[[Call], list[Call]] = no_calls
    """Further calls on which a kernel must be correct; forms are chosen on `sample` only."""
    exact: Callable[..., Any] | None = None
    """The exact reference; None: the reference, on arguments in a more precise dtype."""
    align: Callable[[Call, tuple[Any, ...]], tuple[Any, ...]] | None = None
    """Maps a call and some of its results to results that can be compared (`errors.Align`)."""
    convolutions: bool = False
    """Whether the reference calls convolutions, for which torch has a separate TF32 setting."""


FEW = 2
"""Rows of a batch in a proof."""


def first_rows(count: int) -> Callable[[Call], Call]:
    """A `Rule.sample` of the first images or objects. count: leading arguments with a batch."""

    def sample(call: Call) -> Call:
        batches = call.arguments[:count]
        return Call((*(x[:FEW] for x in batches), *call.arguments[count:]), call.named)

    return sample


_rules: dict[str, Rule] = {}
_DEFAULT = Rule()


def declare(op: str, rule: Rule) -> None:
    """Set the rule of `op`. Other ops have the default rule."""
    _rules[op] = rule


def rule_of(op: str) -> Rule:
    """The rule of `op`."""
    return _rules.get(op, _DEFAULT)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in lists, tuples, dictionaries and the weights of ops."""
    return (x for x in tree_leaves(value) if isinstance(x, Tensor))


def mapped(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """`value` with `change` applied to every tensor in it."""
    return tree_map_only(Tensor, change, value)


def described(value: Hashable) -> str:
    """A configuration as text, different for different configurations."""
    if isinstance(value, tuple):
        return f"({' '.join(described(part) for part in value)})"
    return repr(value).removeprefix("torch.")


def bits(number: int) -> int:
    """The number of bits: equal for all numbers between two powers of two."""
    return int(number).bit_length()
