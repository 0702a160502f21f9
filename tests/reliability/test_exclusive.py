"""The guard of objects that one call at a time may use."""

from __future__ import annotations

import copy
import pickle
import sys
import threading
from types import FrameType
from typing import Any

import pytest

from sam2_fast.ops.core.exclusive import Exclusive
from tests.reliability.racing import race


def test_a_second_call_raises_and_a_later_one_does_not() -> None:
    guard = Exclusive("session")
    with guard.call("step"):
        assert guard.busy
        with (
            pytest.raises(RuntimeError, match=r"^predict: this session is in use by another call"),
            guard.call("predict"),
        ):
            pass
        assert guard.busy
    assert not guard.busy
    with guard.call("step"):
        pass


def test_a_call_in_another_thread_raises() -> None:
    guard, entered, done = Exclusive("session"), threading.Event(), threading.Event()

    def use() -> None:
        with guard.call("step"):
            entered.set()
            done.wait(10)

    thread = threading.Thread(target=use)
    thread.start()
    assert entered.wait(10)
    with pytest.raises(RuntimeError, match="in use"), guard.call("step"):
        pass
    done.set()
    thread.join()
    with guard.call("step"):
        pass


@pytest.mark.reliability("interrupts")
@pytest.mark.parametrize("line", range(40))
def test_an_interrupt_at_any_line_does_not_block_later_calls(line: int) -> None:
    guard = Exclusive("session")
    seen = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal seen
        is_ours = "exclusive" in frame.f_code.co_filename
        if event == "line" and is_ours:
            if seen == line:
                seen += 1
                raise KeyboardInterrupt
            seen += 1
        return trace

    def use() -> None:
        with guard.call("step"):
            pass

    previous = sys.gettrace()
    sys.settrace(trace)
    try:
        use()
    except KeyboardInterrupt as error:
        interrupt: BaseException | None = error  # its traceback keeps the frames
    else:
        interrupt = None
    finally:
        sys.settrace(previous)
    assert (interrupt is not None) == (seen > line)
    with guard.call("step"):
        pass


def test_of_many_threads_one_at_a_time_is_running() -> None:
    guard, running, most, errors = Exclusive("session"), [], [], []

    def use() -> None:
        for _ in range(300):
            try:
                with guard.call("step"):
                    running.append(1)
                    most.append(len(running))
                    running.pop()
            except RuntimeError as error:
                errors.append(error)

    race(*[use] * 4)
    assert max(most) == 1 and len(most) + len(errors) == 1200


def test_copies_and_pickles_are_free() -> None:
    guard = Exclusive("session")
    with guard.call("step"):
        for other in (copy.deepcopy(guard), pickle.loads(pickle.dumps(guard))):
            assert not other.busy
