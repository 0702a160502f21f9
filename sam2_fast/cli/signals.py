"""Signals that end a command: Ctrl-C, SIGTERM of job schedulers, SIGHUP of closed terminals.

The first signal during a frame of a tracking run is deferred until the frame is complete; a second
one ends the command at once.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
_ENDING = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]


class Interrupted(KeyboardInterrupt):
    """A signal has ended the command."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    @property
    def exit_code(self) -> int:
        """The exit code of a program that this signal has ended, as in a shell."""
        return 128 + self.number

    def __str__(self) -> str:
        name = signal.Signals(self.number).name
        return "interrupted" if self.number == signal.SIGINT else f"interrupted by {name}"


class _Signals:
    """The signals that a command has received."""

    def __init__(self) -> None:
        self.deferring = False
        self.pending: int | None = None

    def receive(self, number: int, frame: Any) -> None:
        """Handler of a signal."""
        if self.deferring and self.pending is None:
            self.pending = number
            return
        self.deferring, self.pending = False, None
        raise Interrupted(number)


_current: _Signals | None = None


@contextmanager
def received_signals() -> Iterator[None]:
    """Raise `Interrupted` in this block for signals that would end the process.

    Ignored signals stay ignored, for example SIGHUP under nohup. Outside the main thread nothing is
    changed, because Python handles signals only there. The earlier handlers are restored.
    """
    global _current
    if threading.current_thread() is not threading.main_thread() or _current is not None:
        yield
        return
    signals = _Signals()
    earlier: list[tuple[int, Any]] = []
    try:
        _current = signals
        for number in _ENDING:
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                earlier.append((number, signal.signal(number, signals.receive)))
        yield
    finally:
        _current = None
        for number, handler in earlier:
            signal.signal(number, handler)


@contextmanager
def deferred_signals() -> Iterator[None]:
    """Run a block to its end before the first signal takes effect."""
    signals = _current
    if signals is None or signals.deferring:
        yield
        return
    signals.deferring = True
    try:
        yield
    finally:
        signals.deferring = False
    check_signals()


def check_signals() -> None:
    """Raise `Interrupted` if a deferred signal was received."""
    signals = _current
    if signals is not None and not signals.deferring and signals.pending is not None:
        number, signals.pending = signals.pending, None
        raise Interrupted(number)
