"""Captures of CUDA graphs: at most one at a time, the state after a failed capture, and the order
of streams.
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


def run_in_threads(*runs: Callable[[], None]) -> None:
    threads = [threading.Thread(target=run, daemon=True) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20.0)
        assert not thread.is_alive(), "a deadlock"


def test_captures_of_two_threads_never_overlap(cuda: Cuda) -> None:
    running = 0
    max_running = 0
    lock, start = threading.Lock(), threading.Barrier(2)

    def work() -> None:
        nonlocal running, max_running
        with lock:
            running += 1
            max_running = max(max_running, running)
        time.sleep(0.01)
        with lock:
            running -= 1

    def predict() -> None:
        recorder = Recorder(CPU)
        start.wait()
        for _ in range(3):
            with recorder.exclusive():
                recorder.record(work)

    run_in_threads(predict, predict)
    assert len(cuda.pools) == 6 and cuda.overlaps == 0
    assert max_running == 1, "warm-ups exclude captures, too: a capture waits for the device"


def test_a_failed_capture_leaves_the_lock_free_for_other_threads(cuda: Cuda) -> None:
    recorder = Recorder(CPU)
    with recorder.exclusive(), pytest.raises(CaptureError):
        capture(recorder, raises(RuntimeError("no"), at=1))

    def capture_in_a_thread() -> None:
        capture(Recorder(CPU), lambda: None)

    run_in_threads(capture_in_a_thread)
    assert len(cuda.pools) == 1, "the first failed before its capture began"


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

    run_in_threads(record, replay)
    assert len(cuda.pools) == 1


def raises(error: BaseException, at: int, cuda: Cuda | None = None) -> Callable[[], None]:
    """A function whose run number `at` raises `error`, and invalidates the capture of `cuda`.

    Runs 0 and 1 are the warm-up, run 2 is the capture.
    """
    runs = iter(range(10))

    def run() -> None:
        stream: Any = torch.cuda.current_stream()
        stream.run(f"run of {at}")
        if next(runs) == at:
            if cuda is not None:
                cuda.invalid = True
            raise error

    return run


@pytest.mark.parametrize(("at", "invalid"), [(0, False), (1, False), (2, False), (2, True)])
def test_a_failed_capture_leaves_no_state_behind(cuda: Cuda, at: int, invalid: bool) -> None:
    recorder = Recorder(CPU)
    with recorder.exclusive():
        living = recorder.record(lambda: 1)
        with pytest.raises(CaptureError, match="RuntimeError: cannot"):
            capture(recorder, raises(RuntimeError("cannot"), at, cuda if invalid else None))
        assert cuda.current() is cuda.main, "the stream of the caller is the current one"
        assert cuda.recording == [], "the allocator is in no capture"
        assert f"run of {at}" in cuda.main.preceding, (
            "the caller's stream may reuse memory that the failed run writes to"
        )
        again = recorder.record(lambda: 2)
    assert cuda.pools[-1] not in cuda.pools[:-1], "the pool of a failed capture is not reused"
    assert living.result + again.result == 3


def test_reasons_begin_with_the_first_error() -> None:
    try:
        try:
            raise RuntimeError("a synchronisation\nand advice")
        except RuntimeError:
            raise ValueError("the end of the capture")  # noqa: B904
    except ValueError as error:
        expected = "RuntimeError: a synchronisation; then ValueError: the end of the capture"
        assert reason_of(error) == expected
    assert reason_of(KeyError()) == "KeyError"


@pytest.mark.parametrize(
    "error", [ValueError("a shape"), KeyboardInterrupt()], ids=["ValueError", "interrupt"]
)
def test_other_errors_are_raised_unchanged(cuda: Cuda, error: BaseException) -> None:
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


def test_a_pool_is_shared_only_while_one_of_its_graphs_exists(cuda: Cuda) -> None:
    recorder = Recorder(CPU)
    with recorder.exclusive():
        living = [recorder.record(lambda: None) for _ in range(2)]
        assert len(set(cuda.pools)) == 1, "graphs share memory"
        for _ in range(3):  # all graphs are freed, as after a change of the weights
            living.clear()
            gc.collect()
            living.append(recorder.record(lambda: None))
    assert len(set(cuda.pools)) == 4


def test_the_side_stream_waits_only_for_changed_weights(cuda: Cuda) -> None:
    stream = SideStream(CPU)

    def preceding(weights: object) -> set[str]:
        """Operations that precede work on the side stream that reads `weights`."""
        with stream.enter(weights):
            return set(cuda.current().preceding)

    assert preceding("first") == set()
    cuda.main.run("track a frame")
    assert preceding("first") == set(), "without changes, the streams overlap"
    cuda.main.run("write the weights")
    assert preceding("second") == {"track a frame", "write the weights"}
    cuda.main.run("track another frame")
    assert "track another frame" not in preceding("second") | preceding(None)


def test_values_computed_during_a_capture_are_not_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    cache: Cache[list[int]] = Cache()
    weight = torch.zeros(2)
    before: Any = cache.get(lambda: [1], [weight])
    monkeypatch.setattr("sam2_fast.ops.core.cache.capturing", lambda tensor: True)
    assert cache.get(lambda: [2], [weight]) is before, "it was computed before the capture"
    weight.add_(1.0)
    assert cache.get(lambda: [3], [weight]) == [3] and cache.value is before
    monkeypatch.undo()
    assert cache.get(lambda: [4], [weight]) == [4] and cache.value == [4]
