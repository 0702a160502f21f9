"""A guard for objects that one call at a time may use."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar


class HasGuard(Protocol):
    """An object with methods that `exclusively` guards."""

    guard: Exclusive


class Exclusive:
    """Lets one call at a time use an object; a second call raises instead of waiting.

    A call has ended when its frame does not run any more. So an interrupt that arrives while a
    call ends, at whatever instruction, cannot block the object, as a lock would.
    Copies and pickles are free.

    subject: the name of the object in errors, for example "session".
    """

    def __init__(self, subject: str) -> None:
        self._subject = subject
        # By number, so that of several threads exactly one gets the next number (`setdefault`).
        self._calls: dict[int, Call] = {}

    def call(self, verb: str) -> Call:
        """A context manager of one call, named `verb` in errors.

        Raises RuntimeError when it is entered while another call runs.
        """
        return Call(self._calls, verb, self._subject)

    @property
    def busy(self) -> bool:
        """Whether a call runs."""
        return any(call.is_running() for call in [*self._calls.values()])

    @property
    def busy_here(self) -> bool:
        """Whether the caller is part of a call that runs."""
        thread = threading.get_ident()
        return any(call.is_running(thread) for call in [*self._calls.values()])

    def __reduce__(self) -> tuple[Any, ...]:
        return Exclusive, (self._subject,)


Self = TypeVar("Self", bound=HasGuard)
P = ParamSpec("P")
Result = TypeVar("Result")


def exclusively(
    method: Callable[Concatenate[Self, P], Result],
) -> Callable[Concatenate[Self, P], Result]:
    """Decorator of a method of an object with a guard: it may run while no other call does.

    A method that a guarded method calls, of a subclass for example, is part of that call.
    """
    verb = method.__name__

    @functools.wraps(method)
    def run(self: Self, *args: P.args, **kwargs: P.kwargs) -> Result:
        guard = self.guard
        if guard.busy_here:
            return method(self, *args, **kwargs)
        with guard.call(verb):
            return method(self, *args, **kwargs)

    return run


class Call:
    """One call that uses an object exclusively."""

    def __init__(self, calls: dict[int, Call], verb: str, subject: str) -> None:
        self._calls = calls
        self._verb = verb
        self._subject = subject
        self._thread = 0
        self._frame: FrameType | None = None

    def __enter__(self) -> None:
        self._thread = threading.get_ident()
        frame = sys._getframe(1)
        while True:
            newest = max([*self._calls], default=0)
            previous = self._calls.get(newest)
            if previous is not None and previous.is_running():
                raise RuntimeError(
                    f"{self._verb}: this {self._subject} is in use by another call; give every "
                    f"thread a {self._subject} of its own"
                )
            self._frame = frame
            if self._calls.setdefault(newest + 1, self) is self:
                self._calls.pop(newest, None)
                return
            self._frame = None

    def __exit__(self, *_: object) -> None:
        self._frame = None

    def is_running(self, thread: int | None = None) -> bool:
        """Whether the function that entered this call is being executed.

        thread: by the thread of this number; None: by any thread.
        """
        frame = self._frame
        if thread is not None and thread != self._thread:
            return False
        running = None if frame is None else sys._current_frames().get(self._thread)
        while running is not None:
            if running is frame:
                return True
            running = running.f_back
        return False
