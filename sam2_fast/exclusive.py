"""A guard for objects that one call at a time may use."""

from __future__ import annotations

import sys
import threading
from types import FrameType
from typing import Any


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

    def __reduce__(self) -> tuple[Any, ...]:
        return Exclusive, (self._subject,)


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

    def is_running(self) -> bool:
        """Whether the function that entered this call is being executed."""
        frame = self._frame
        running = None if frame is None else sys._current_frames().get(self._thread)
        while running is not None:
            if running is frame:
                return True
            running = running.f_back
        return False
