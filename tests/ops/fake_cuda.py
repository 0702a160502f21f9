"""Streams, events, memory pools and captures of `torch.cuda` that follow its documented rules,
without a device.

A stream has the set of operations that are ordered before its next one; `run` adds an operation.
There may be one capture at a time. A pool may be reused only while a graph that uses it exists, as
torch's allocator requires.
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
        self.preceding: set[str] = set()
        """Names of the operations that finish before the stream's next one starts."""

    def run(self, operation: str) -> None:
        self.preceding.add(operation)

    def wait_stream(self, other: Stream) -> None:
        self.preceding |= other.preceding

    def wait_event(self, event: Event) -> None:
        self.preceding |= event.preceding


class Event:
    def __init__(self) -> None:
        self.preceding: set[str] = set()

    def record(self, stream: Stream) -> None:
        self.preceding = set(stream.preceding)

    def synchronize(self) -> None:
        pass


class Cuda:
    """State of the process: the number of graphs of each pool, captures in progress, and the
    current stream.
    """

    def __init__(self) -> None:
        self.uses: Counter[int] = Counter()
        self.recording: list[int] = []
        self.pools: list[int] = []
        self.overlaps = 0
        self.invalid = False  # whether the capture contains an operation that cannot be captured
        self.main = Stream()
        self._threads = threading.local()
        self._handles = itertools.count(1)

    def current(self, device: Any = None) -> Stream:
        return getattr(self._threads, "stream", self.main)

    def select(self, stream: Stream) -> None:
        self._threads.stream = stream

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        previous = self.current()
        self.select(stream)
        try:
            yield
        finally:
            self.select(previous)

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
    """Like `torch.cuda.graph`: if the end of a capture raises, its stream stays the current one."""

    def __init__(self, cuda: Cuda, graph: Any, pool: int, stream: Stream) -> None:
        self._cuda, self._graph, self._pool, self._stream = cuda, graph, pool, stream
        self._previous = cuda.current()

    def __enter__(self) -> None:
        cuda = self._cuda
        cuda.overlaps += bool(cuda.recording)
        self._previous = cuda.current()
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
        cuda.select(self._previous)


class Graph:
    """Like `torch.cuda.CUDAGraph`: a graph that is freed no longer uses its pool."""

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
    """Replaces the parts of `torch.cuda` that CUDA graphs use, for one test."""
    fake = Cuda()
    replacements = {
        "Stream": Stream,
        "Event": Event,
        "CUDAGraph": Graph,
        "graph": fake.graph,
        "stream": fake.stream,
        "current_stream": fake.current,
        "graph_pool_handle": fake.handle,
        "device": lambda device: fake.stream(fake.current()),
    }
    for name, value in replacements.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", fake.end_allocation, raising=False)
    return fake
