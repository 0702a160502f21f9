"""Streams, events, memory pools and captures of `torch.cuda` by its documented rules, without a
device.

A stream knows which operations are ordered before its next one; `did` adds one. Of captures there
may be one at a time; a pool may be used again while a graph of it lives, as the allocator of torch
demands.
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

CPU = torch.device("cpu")


class Stream:
    def __init__(self, device: Any = None) -> None:
        self.device = CPU
        self.before: set[str] = set()

    def did(self, what: str) -> None:
        self.before.add(what)

    def wait_stream(self, other: Stream) -> None:
        self.before |= other.before

    def wait_event(self, event: Event) -> None:
        self.before |= event.before


class Event:
    def __init__(self) -> None:
        self.before: set[str] = set()

    def record(self, stream: Stream) -> None:
        self.before = set(stream.before)

    def synchronize(self) -> None:
        pass


class Cuda:
    """What the process has: pools by the number of their graphs, captures under way, the current
    stream.
    """

    def __init__(self) -> None:
        self.uses: Counter[int] = Counter()
        self.recording: list[int] = []
        self.pools: list[int] = []
        self.overlaps = 0
        self.invalid = False  # the capture has met an operation that cannot be captured
        self.main = Stream()
        self._threads = threading.local()
        self._handles = itertools.count(1)

    def current(self, device: Any = None) -> Stream:
        return getattr(self._threads, "stream", self.main)

    def select(self, stream: Stream) -> None:
        self._threads.stream = stream

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before = self.current()
        self.select(stream)
        try:
            yield
        finally:
            self.select(before)

    def handle(self) -> int:
        return next(self._handles)

    def end_allocation(self, device: Any, pool: int) -> None:
        if pool not in self.recording:
            raise RuntimeError("not currently recording")
        self.recording.remove(pool)

    def graph(self, graph: Any, pool: int, stream: Stream, capture_error_mode: str) -> Capture:
        assert capture_error_mode == "thread_local"
        return Capture(self, graph, pool, stream)


class Capture:
    """As `torch.cuda.graph`: where its end raises, the stream stays the current one."""

    def __init__(self, cuda: Cuda, graph: Any, pool: int, stream: Stream) -> None:
        self._cuda, self._graph, self._pool, self._stream = cuda, graph, pool, stream
        self._before = cuda.current()

    def __enter__(self) -> None:
        cuda = self._cuda
        cuda.overlaps += bool(cuda.recording)
        self._before = cuda.current()
        cuda.select(self._stream)
        if self._pool in cuda.recording:
            raise RuntimeError("already recording to mempool_id")
        if self._pool in cuda.uses and cuda.uses[self._pool] == 0:
            raise RuntimeError("INTERNAL ASSERT FAILED: use_count > 0")
        cuda.uses[self._pool] += 1
        cuda.recording.append(self._pool)
        cuda.pools.append(self._pool)

    def __exit__(self, *_: object) -> None:
        cuda = self._cuda
        if cuda.invalid:
            cuda.invalid = False
            raise RuntimeError(
                "CUDA error: operation failed due to a previous error during capture"
            )
        cuda.recording.remove(self._pool)
        self._graph.release = lambda: cuda.uses.subtract([self._pool])
        cuda.select(self._before)


class Graph:
    """As `torch.cuda.CUDAGraph`: a graph that is freed leaves its pool."""

    def __init__(self) -> None:
        self.release: Any = None

    def reset(self) -> None:
        if self.release is not None:
            self.release()
        self.release = None

    def __del__(self) -> None:
        self.reset()


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    """`torch.cuda` as far as recordings use it, replaced for one test."""
    fake = Cuda()
    replaced = {
        "Stream": Stream,
        "Event": Event,
        "CUDAGraph": Graph,
        "graph": fake.graph,
        "stream": fake.stream,
        "current_stream": fake.current,
        "graph_pool_handle": fake.handle,
        "device": lambda device: fake.stream(fake.current()),
    }
    for name, value in replaced.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", fake.end_allocation, raising=False)
    return fake
