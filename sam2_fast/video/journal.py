"""What a call has changed in a session, so that a call that raises can change it back."""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import MutableMapping
from functools import partial
from typing import Any

from sam2_fast.video.finite import Verdict


class Journal:
    """The changes of one call, in order.

    A change is recorded before it is done, and `undo` is a single call of C functions. So an
    interrupt at any instruction leaves either the old state or one that `undo` restores.
    Dictionaries keep their identity, and `undo` also restores the order of their keys.

    verdicts: results of the call that are still being checked on the device.
    """

    def __init__(self) -> None:
        self._undo: list[partial[Any]] = []
        self._protected: set[int] = set()
        self.verdicts: list[Verdict] = []

    def set(self, entries: MutableMapping[Any, Any], key: Any, value: Any) -> None:
        """`entries[key] = value`."""
        if id(entries) not in self._protected:
            if key in entries:
                self._undo.append(partial(operator.setitem, entries, key, entries[key]))
            else:
                self._undo.append(partial(entries.pop, key, None))
        entries[key] = value

    def pop(self, entries: MutableMapping[Any, Any], key: Any) -> Any:
        """`entries.pop(key, None)`."""
        if key in entries:
            self.protect(entries)
        return entries.pop(key, None)

    def protect(self, *containers: Any) -> None:
        """Record all entries of dictionaries and lists, which may then be changed in any way."""
        for container in containers:
            if id(container) in self._protected:
                continue
            if isinstance(container, MutableMapping):
                restore = partial(container.update, dict(container))
                self._undo += [restore, partial(container.clear)]
            else:
                self._undo.append(partial(operator.setitem, container, slice(None), [*container]))
            self._protected.add(id(container))

    def assign(self, owner: object, **values: Any) -> None:
        """Set attributes of an object, all at once."""
        attributes = vars(owner)
        self._undo.append(partial(attributes.update, {name: attributes[name] for name in values}))
        attributes.update(values)

    def set_slot(self, owner: object, name: str, value: Any) -> None:
        """Set an attribute of an object that has slots."""
        self._undo.append(partial(setattr, owner, name, getattr(owner, name)))
        setattr(owner, name, value)

    def append(self, entries: list[Any], value: Any) -> None:
        """`entries.append(value)`."""
        self._undo.append(partial(entries.remove, value))
        entries.append(value)

    def undo(self, *earlier: Journal) -> None:
        """Change everything back, then what `earlier` calls have changed, the newest one first."""
        steps = [step for journal in (self, *earlier) for step in reversed(journal._undo)]
        deque(map(partial.__call__, steps), maxlen=0)
