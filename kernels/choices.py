"""Choices between forms of the same computation: tile sizes of a kernel, or a library's product in
its place.

A form changes the speed and the rounding of a result, never what is computed. The default comes
from a rule for the architecture; a table of forms that were measured on the device replaces it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch

Form = tuple[int, ...] | str
"""Tile sizes, warps and stages of a kernel, or the name of another way to compute the same."""
Key = tuple[int | str, ...]
"""What a choice depends on: sizes, bytes of an element, options."""


@dataclass
class Trial:
    """The choices that are met while a computation runs, and the forms that are forced on it."""

    forced: dict[tuple[str, Key], Form] = field(default_factory=dict)
    met: dict[tuple[str, Key], tuple[Form, tuple[Form, ...]]] = field(default_factory=dict)
    """For each choice the form that was taken and all forms that could have been."""


_trial: ContextVar[Trial | None] = ContextVar("sam2_fast_trial", default=None)
_tables: dict[torch.device, Mapping[tuple[str, Key], Form]] = {}
_load: list[Callable[[torch.device], Mapping[tuple[str, Key], Form]]] = []


def choose(
    device: torch.device, point: str, key: Key, default: Form, others: Sequence[Form] = ()
) -> Form:
    """The form in which `point` is computed for `key` on `device`: the one of its table, or
    `default`.

    others: the forms that may be taken instead of `default`. A form of the table that is not among
    them is left out of account.
    """
    forms = (default, *(form for form in others if form != default))
    trial = _trial.get()
    if trial is not None:
        forced = trial.forced.get((point, key))
        form = _table(device).get((point, key), default) if forced is None else forced
        form = form if form in forms else default
        trial.met[point, key] = (form, forms)
        return form
    form = _table(device).get((point, key), default)
    return form if form in forms else default


@contextmanager
def trying(forced: Mapping[tuple[str, Key], Form] | None = None) -> Iterator[Trial]:
    """Choices of this thread inside are noted, and made as `forced` says."""
    trial = Trial(dict(forced or {}))
    token = _trial.set(trial)
    try:
        yield trial
    finally:
        _trial.reset(token)


def install(device: torch.device, table: Mapping[tuple[str, Key], Form]) -> None:
    """Take the forms of `table` on `device` from now on."""
    _tables[device] = dict(table)


def load_with(load: Callable[[torch.device], Mapping[tuple[str, Key], Form]]) -> None:
    """Take what `load` returns as the table of a device, when a choice is first made there."""
    _load[:] = [load]
    _tables.clear()


@contextmanager
def separate(load: Callable[[torch.device], Mapping[tuple[str, Key], Form]]) -> Iterator[None]:
    """Other tables in this process inside, loaded by `load`; then those from before."""
    tables, loaders = dict(_tables), list(_load)
    load_with(load)
    try:
        yield
    finally:
        _tables.clear()
        _tables.update(tables)
        _load[:] = loaders


def _table(device: torch.device) -> Mapping[tuple[str, Key], Form]:
    table = _tables.get(device)
    if table is None:
        table = _tables[device] = dict(_load[0](device)) if _load else {}
    return table
