"""Work on a GPU that is recorded once as a CUDA graph and replayed: one launch for the host instead of hundreds."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")

WARM_UP = 2
"""Runs before a recording: kernels are compiled and loaded, libraries make their choices and take their workspaces."""


class Recording(Generic[Result]):
    """One function as a graph. `result` is what it returned: tensors that every replay writes again."""

    def __init__(self, run: Callable[[], Result], stream: torch.cuda.Stream, pool: Any) -> None:
        """run: reads and writes tensors that stay where they are, and looks at no number of the device. Records on `stream`, which waits
        for the device."""
        device = stream.device
        kind, here = device.type, torch.cuda.current_stream(device)
        stream.wait_stream(here)
        # casts that the caller's autocast keeps until it ends must not be part of what is replayed later
        casts = torch.autocast(kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind), cache_enabled=False)
        with casts, torch.cuda.device(device):
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP):
                    run()
            here.wait_stream(stream)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                self.result = run()

    def replay(self) -> Result:
        """Enqueue all of it on the current stream."""
        self._graph.replay()
        return self.result


class Recorder:
    """Makes recordings that share scratch memory, and lets one of them run at a time, whichever thread or stream asks.

    What one recording returns may lie where another has its scratch: results are copied before the turn ends.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # one for all recordings: libraries keep a workspace for each stream
        self._pool = torch.cuda.graph_pool_handle()
        self._lock = threading.Lock()
        self._done = torch.cuda.Event()

    def record(self, run: Callable[[], Result]) -> Recording[Result]:
        """`run` as a graph; call it inside `turn`."""
        return Recording(run, self._stream, self._pool)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Fill inputs, replay and copy results inside: what other streams replay waits on the device until that is done."""
        with self._lock:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(self._done)
            try:
                yield
            finally:
                self._done.record(stream)


class Lane:
    """A second stream for work that nobody waits for yet. It begins behind what the current stream has to do when the lane is made."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._stream.wait_stream(torch.cuda.current_stream(device))

    def enter(self) -> AbstractContextManager[Any]:
        """Work inside goes onto the lane."""
        return torch.cuda.stream(self._stream)

    def mark(self) -> torch.cuda.Event:
        """The lane's work so far, for `join`."""
        event = torch.cuda.Event()
        event.record(self._stream)
        return event

    def join(self, event: torch.cuda.Event, made: Iterable[Tensor]) -> None:
        """The current stream waits on the device for what was marked, and may use the tensors `made` there from then on."""
        here = torch.cuda.current_stream(self._stream.device)
        here.wait_event(event)
        for tensor in made:
            tensor.record_stream(here)
