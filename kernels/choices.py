"""Choices between forms of a computation: different tile sizes of a kernel, or a library call.

A form changes the speed and the rounding of a result, never what is computed. The default follows
from the architecture; a table of forms that were measured on the device overrides it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch

Form = tuple[int, ...] | str
"""Tile sizes, warps and stages of a kernel, or the name of another implementation."""
Key = tuple[int | str, ...]
"""What a choice depends on: sizes, bytes per element, options."""


@dataclass
class Trial:
    """Choices that a computation makes within `trying`, and the forms that are forced on it."""

    forced: dict[tuple[str, Key], Form] = field(default_factory=dict)
    choices: dict[tuple[str, Key], tuple[Form, tuple[Form, ...]]] = field(default_factory=dict)
    """For each choice the form that was used, and all possible forms, the default first."""


_trial: ContextVar[Trial | None] = ContextVar("sam2_fast_trial", default=None)
_tables: dict[torch.device, Mapping[tuple[str, Key], Form]] = {}
_load: list[Callable[[torch.device], Mapping[tuple[str, Key], Form]]] = []


def choose(
    device: torch.device, point: str, key: Key, default: Form, alternatives: Sequence[Form] = ()
) -> Form:
    """The form to use for `point` and `key` on `device`: that of the device's table, or `default`.

    alternatives: forms that may be used instead of `default`. A form of the table that is not one
        of them is ignored.
    """
    forms = (default, *(form for form in alternatives if form != default))
    trial = _trial.get()
    if trial is not None:
        forced = trial.forced.get((point, key))
        form = _table(device).get((point, key), default) if forced is None else forced
        form = form if form in forms else default
        trial.choices[point, key] = (form, forms)
        return form
    form = _table(device).get((point, key), default)
    return form if form in forms else default


@contextmanager
def trying(forced: Mapping[tuple[str, Key], Form] | None = None) -> Iterator[Trial]:
    """Context in which choices of this thread are recorded, and follow `forced` if it has them."""
    trial = Trial(dict(forced or {}))
    token = _trial.set(trial)
    try:
        yield trial
    finally:
        _trial.reset(token)


def install(device: torch.device, table: Mapping[tuple[str, Key], Form]) -> None:
    """Use the forms of `table` on `device` from now on."""
    _tables[device] = dict(table)


def load_with(load: Callable[[torch.device], Mapping[tuple[str, Key], Form]]) -> None:
    """Discard all tables; call `load` for the table of a device when it is first needed."""
    _load[:] = [load]
    _tables.clear()


@contextmanager
def separate_tables(
    load: Callable[[torch.device], Mapping[tuple[str, Key], Form]],
) -> Iterator[None]:
    """Context in which this process uses tables that `load` returns instead of the present ones."""
    tables = dict(_tables)
    loaders = list(_load)
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
