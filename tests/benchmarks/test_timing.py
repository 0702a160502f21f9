"""Timing on a GPU, with a simulated host clock and a simulated device queue."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from benchmarks import timing
from benchmarks.timing import cuda_milliseconds, interleaved, rows

CYCLES_PER_MS = 2_000_000


class Machine:
    """A host and a device that runs what is enqueued in order. All times in milliseconds."""

    def __init__(self) -> None:
        self.now = 0.0  # the host's clock
        self.free = 0.0  # when the device will have finished all enqueued work
        self.sleeps: list[float] = []
        self.flushes = 0

    def work(self, host: float, device: float) -> None:
        """Enqueue work that takes the device `device` ms; enqueueing takes the host `host` ms."""
        self.now += host
        self.free = max(self.now, self.free) + device

    def synchronize(self) -> None:
        self.now = max(self.now, self.free)

    def sleep(self, cycles: int) -> None:
        self.sleeps.append(cycles / CYCLES_PER_MS)
        self.work(0.0, self.sleeps[-1])

    def flush(self) -> None:
        self.flushes += 1
        self.work(0.01, 0.5)


class Event:
    """Like `torch.cuda.Event`."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._at = 0.0

    def record(self) -> None:
        self._at = max(self._machine.now, self._machine.free)

    def query(self) -> bool:
        return self._machine.now >= self._at

    def elapsed_time(self, end: Event) -> float:
        assert self._machine.now >= end._at, "read before the device reached the event"
        return end._at - self._at


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    simulated = Machine()
    monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: Event(simulated))
    monkeypatch.setattr(torch.cuda, "synchronize", simulated.synchronize)
    monkeypatch.setattr(torch.cuda, "_sleep", simulated.sleep)
    monkeypatch.setattr(
        "sam2_fast.proving.timing.time", SimpleNamespace(perf_counter=lambda: simulated.now / 1e3)
    )
    return simulated


def kernels(machine: Machine, count: int, host: float, device: float) -> Callable[[], None]:
    def run() -> None:
        for _ in range(count):
            machine.work(host, device)

    return run


def test_device_time_is_reported_even_if_the_host_enqueues_more_slowly(machine: Machine) -> None:
    assert cuda_milliseconds(kernels(machine, 10, host=0.5, device=0.1)) == pytest.approx(1.0)
    assert machine.sleeps == [10.0]


def test_the_device_sleeps_longer_if_it_woke_before_the_host_was_done(machine: Machine) -> None:
    assert cuda_milliseconds(kernels(machine, 60, host=0.5, device=0.1)) == pytest.approx(6.0)
    assert machine.sleeps == [10.0, 40.0]


def test_a_function_that_waits_for_the_device_is_timed_by_the_wall_clock(machine: Machine) -> None:
    def run() -> None:
        machine.work(1.0, 2.0)
        machine.synchronize()
        machine.now += 3.0  # work of the host on the result

    assert cuda_milliseconds(run) == pytest.approx(6.0)
    assert machine.sleeps == [10.0, 40.0, 160.0]


def test_work_enqueued_earlier_is_not_timed(machine: Machine) -> None:
    machine.work(0.0, 500.0)
    assert cuda_milliseconds(kernels(machine, 1, host=0.1, device=2.0)) == pytest.approx(2.0)


@pytest.mark.parametrize("host", [0.5, 400.0])
def test_caches_are_flushed_before_every_attempt_and_the_flush_is_not_timed(
    machine: Machine, host: float
) -> None:
    flushes: list[int] = []

    def run() -> None:
        flushes.append(machine.flushes)
        machine.work(host, 1.0)

    milliseconds = cuda_milliseconds(run, before=machine.flush)
    assert flushes == list(range(1, len(flushes) + 1))
    assert milliseconds == pytest.approx(1.0 if len(flushes) == 1 else host + 1.0)


@pytest.fixture
def gpu_options(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> timing.Options:
    """Options for the simulated GPU."""
    flushed_buffer = SimpleNamespace(zero_=machine.flush)
    monkeypatch.setattr(timing.torch, "empty", lambda *_, **__: flushed_buffer)
    return timing.Options(torch.device("cuda"), repeats=3)


def test_rounds_alternate_and_the_first_warms_up(
    machine: Machine, gpu_options: timing.Options
) -> None:
    order: list[str] = []

    def function(name: str, device: float) -> Callable[[], None]:
        def run() -> None:
            order.append(name)
            machine.work(0.1, device * (10 if len(order) <= 2 else 1))

        return run

    times = interleaved({"a": function("a", 1.0), "b": function("b", 2.0)}, gpu_options)
    assert order == ["a", "b"] * 4
    assert times["a"] == pytest.approx([1.0] * 3)
    assert times["b"] == pytest.approx([2.0] * 3)
    assert [row.notes for row in rows("case", times)] == [{}, {}]


def test_times_of_the_wall_clock_are_noted_and_not_mixed_with_device_times(
    machine: Machine, gpu_options: timing.Options
) -> None:
    calls: list[int] = []

    def synchronizes_later() -> None:
        calls.append(0)
        machine.work(0.5, 2.0)
        if len(calls) > 2:  # from the third call on
            machine.synchronize()

    times = interleaved({"a": kernels(machine, 1, 0.1, 1.0), "b": synchronizes_later}, gpu_options)
    assert times["b"] == pytest.approx([2.5, 2.5])
    assert len(calls) == 1 + 1 + (3 + 1) + 1  # three longer sleeps do not help, then none
    assert [row.notes for row in rows("case", times, {"a": {"x ours": 1.0}})] == [
        {"x ours": 1.0},
        {"clock": "wall"},
    ]
