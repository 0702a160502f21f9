"""Captures: one at a time, nothing left behind by one that fails, and no stream reads what is not
written.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from sam2_fast.ops.core.cache import Cache
from sam2_fast.recording.cuda_graph import (
    CaptureError,
    Recorder,
    SideStream,
    capture,
    capture_errors,
    reason_of,
)
from tests.ops.fake_cuda import CPU, Cuda, cuda

__all__ = ["cuda"]


def in_threads(*runs: Callable[[], None]) -> None:
    threads = [threading.Thread(target=run, daemon=True) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20.0)
        assert not thread.is_alive(), "a deadlock"


def test_captures_of_two_threads_never_overlap(cuda: Cuda) -> None:
    inside: list[int] = [0, 0]  # now, most
    guard, start = threading.Lock(), threading.Barrier(2)

    def work() -> None:
        with guard:
            inside[0] += 1
            inside[1] = max(inside)
        time.sleep(0.01)
        with guard:
            inside[0] -= 1

    def predict() -> None:
        recorder = Recorder(CPU)
        start.wait()
        for _ in range(3):
            with recorder.exclusive():
                recorder.record(work)

    in_threads(predict, predict)
    assert len(cuda.pools) == 6 and cuda.overlaps == 0
    assert inside[1] == 1, "warm-up counts too: beginning a capture waits for the device"


def test_a_failed_capture_leaves_the_lock_free_for_other_threads(cuda: Cuda) -> None:
    recorder = Recorder(CPU)
    with recorder.exclusive(), pytest.raises(CaptureError):
        capture(recorder, raises(RuntimeError("no"), at=1))

    def capture_in_a_thread() -> None:
        capture(Recorder(CPU), lambda: None)

    in_threads(capture_in_a_thread)
    assert len(cuda.pools) == 1, "the first failed before its capture"


def test_other_recorders_replay_during_a_capture(cuda: Cuda) -> None:
    capturing, replayed = threading.Event(), threading.Event()
    first, second = Recorder(CPU), Recorder(CPU)

    def work() -> None:
        capturing.set()
        assert replayed.wait(10.0)

    def replay() -> None:
        assert capturing.wait(10.0)
        with second.exclusive():
            replayed.set()

    def record() -> None:
        with first.exclusive():
            first.record(work)

    in_threads(record, replay)
    assert len(cuda.pools) == 1


def raises(error: BaseException, at: int, cuda: Cuda | None = None) -> Callable[[], None]:
    """A function whose run number `at` raises (0, 1: warm-up; 2: capture), and invalidates the
    capture of `cuda`.
    """
    runs = iter(range(10))

    def run() -> None:
        stream: Any = torch.cuda.current_stream()
        stream.did(f"run of {at}")
        if next(runs) == at:
            if cuda is not None:
                cuda.invalid = True
            raise error

    return run


@pytest.mark.parametrize(("at", "invalid"), [(0, False), (1, False), (2, False), (2, True)])
def test_after_a_failure_all_is_as_before(cuda: Cuda, at: int, invalid: bool) -> None:
    recorder = Recorder(CPU)
    with recorder.exclusive():
        living = recorder.record(lambda: 1)
        with pytest.raises(CaptureError, match="RuntimeError: cannot"):
            capture(recorder, raises(RuntimeError("cannot"), at, cuda if invalid else None))
        assert cuda.current() is cuda.main, "the caller's stream"
        assert cuda.recording == [], "the allocator serves no capture"
        assert f"run of {at}" in cuda.main.before, (
            "memory that the failed run writes to may be used again here"
        )
        again = recorder.record(lambda: 2)
    assert cuda.pools[-1] not in cuda.pools[:-1], "no pool of a failed capture is used again"
    assert living.result + again.result == 3


def test_reasons_name_what_failed_first() -> None:
    try:
        try:
            raise RuntimeError("a synchronisation\nand advice")
        except RuntimeError:
            raise ValueError("the end of the capture")  # noqa: B904
    except ValueError as error:
        assert (
            reason_of(error)
            == "RuntimeError: a synchronisation; then ValueError: the end of the capture"
        )
    assert reason_of(KeyError()) == "KeyError"


@pytest.mark.parametrize(
    "error", [ValueError("a shape"), KeyboardInterrupt()], ids=["ValueError", "interrupt"]
)
def test_other_errors_are_no_failed_captures(cuda: Cuda, error: BaseException) -> None:
    recorder = Recorder(CPU)
    with pytest.raises(type(error)):
        capture(recorder, raises(error, 2))
    assert cuda.current() is cuda.main and cuda.recording == []


def test_errors_of_triton_are_failed_captures(cuda: Cuda) -> None:
    errors = pytest.importorskip("triton.runtime.errors")
    assert capture_errors()[0] is RuntimeError and issubclass(
        torch.cuda.OutOfMemoryError, RuntimeError
    )
    with pytest.raises(CaptureError, match="OutOfResources"):
        capture(Recorder(CPU), raises(errors.OutOfResources(2, 1, "shared memory"), 0))


def test_a_pool_is_shared_while_a_recording_lives_and_never_after(cuda: Cuda) -> None:
    recorder = Recorder(CPU)
    with recorder.exclusive():
        living = [recorder.record(lambda: None) for _ in range(2)]
        assert len(set(cuda.pools)) == 1, "scratch memory is shared"
        for _ in range(3):  # the weights change
            living.clear()
            gc.collect()
            living.append(recorder.record(lambda: None))
    assert len(set(cuda.pools)) == 4


def test_the_side_stream_waits_for_weights_that_were_written_and_for_no_others(cuda: Cuda) -> None:
    stream = SideStream(CPU)

    def read(weights: object) -> set[str]:
        with stream.enter(weights):
            return set(cuda.current().before)

    assert read("first") == set()
    cuda.main.did("track a frame")
    assert read("first") == set(), "waiting would undo the overlap"
    cuda.main.did("write the weights")
    assert read("second") == {"track a frame", "write the weights"}
    cuda.main.did("track another frame")
    assert "track another frame" not in read("second") | read(None)


def test_nothing_is_kept_of_what_is_only_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: Cache[list[int]] = Cache()
    weight = torch.zeros(2)
    during: Any = kept.get(lambda: [1], [weight])
    monkeypatch.setattr("sam2_fast.ops.core.cache.capturing", lambda tensor: True)
    assert kept.get(lambda: [2], [weight]) is during, "computed before the capture"
    weight.add_(1.0)
    assert kept.get(lambda: [3], [weight]) == [3] and kept.value is during
    monkeypatch.undo()
    assert kept.get(lambda: [4], [weight]) == [4] and kept.value == [4]
