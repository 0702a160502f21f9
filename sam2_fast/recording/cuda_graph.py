"""Work on a GPU that is recorded once as a CUDA graph and replayed: one launch for the host instead
of hundreds.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from sam2_fast.proving.device import exclusive, reason_of

Result = TypeVar("Result")

WARM_UP = 2
"""Runs before a recording: kernels are compiled and loaded, libraries make their choices and take
their workspaces.
"""

_ABANDONED: list[torch.cuda.CUDAGraph] = []
"""Graphs whose capture failed. The allocator may keep a callback that refers to the graph object,
so it must not be freed; after `reset` it holds no memory of the device."""


class CaptureError(RuntimeError):
    """The warm-up or the capture of a CUDA graph failed; the message is the reason."""


def capture_errors() -> tuple[type[Exception], ...]:
    """What torch and Triton raise where work cannot run or cannot be captured."""
    triton = sys.modules.get("triton.errors")  # not imported: no kernel of it can have failed
    return (RuntimeError,) if triton is None else (RuntimeError, triton.TritonError)


class Recording(Generic[Result]):
    """One function as a graph. `result` is what it returned: tensors that every replay writes
    again.
    """

    def __init__(self, run: Callable[[], Result], stream: torch.cuda.Stream, pool: Any) -> None:
        """run: reads and writes tensors that stay where they are, and looks at no number of the
        device. Records on `stream`, which waits for the device. What `run` or torch raises passes
        through; the capture is ended then and the current stream is what it was."""
        device = stream.device
        kind = device.type
        # casts that the caller's autocast keeps until it ends must not be part of what is replayed
        # later
        casts = torch.autocast(
            kind,
            torch.get_autocast_dtype(kind),
            torch.is_autocast_enabled(kind),
            cache_enabled=False,
        )
        with exclusive(), casts, torch.cuda.device(device):
            _warm_up(run, stream)
            self._graph = torch.cuda.CUDAGraph()
            self.result = _capture(self._graph, run, stream, pool)

    def replay(self) -> Result:
        """Enqueue all of it on the current stream."""
        self._graph.replay()
        return self.result


def _warm_up(run: Callable[[], Any], stream: torch.cuda.Stream) -> None:
    here = torch.cuda.current_stream(stream.device)
    stream.wait_stream(here)
    try:
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                run()
    # after a failure, too: what `run` writes to may be freed and used again on this stream
    finally:
        here.wait_stream(stream)


def _capture(
    graph: torch.cuda.CUDAGraph,
    run: Callable[[], Result],
    stream: torch.cuda.Stream,
    pool: Any,
) -> Result:
    scope = torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local")
    try:
        # `scope` leaves its stream the current one where beginning or ending the capture raises
        with torch.cuda.stream(stream), scope:
            return run()
    except BaseException:
        _abandon(graph, stream.device, pool)
        raise


def _abandon(graph: torch.cuda.CUDAGraph, device: torch.device, pool: Any) -> None:
    """Undo what a failed capture has left behind."""
    _ABANDONED.append(graph)
    graph.reset()
    # Where `capture_end` raises, some versions of torch leave the allocator believing that the
    # capture goes on, and then memory that several streams used is never free again. Others say
    # "not currently recording".
    with suppress(RuntimeError):
        torch._C._cuda_endAllocateToPool(device.index, pool)


class Recorder:
    """Makes recordings that share scratch memory, and lets one of them run at a time, whichever
    thread or stream asks.

    What one recording returns may lie where another has its scratch: results are copied before the
        turn ends.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # One for all recordings: libraries keep a workspace for each stream.
        self._stream = torch.cuda.Stream(device)
        self._pool: Any = None
        self._living: weakref.WeakSet[Recording[Any]] = weakref.WeakSet()  # recordings in `_pool`
        self._lock = threading.Lock()
        self._done = torch.cuda.Event()

    def record(self, run: Callable[[], Result]) -> Recording[Result]:
        """`run` as a graph; call it inside `turn`. What `run`, torch or Triton raises passes
        through.
        """
        if not self._living:
            # The id of a pool is valid while a graph of it lives: torch asserts so when a capture
            # begins, except where `empty_cache` happens to have removed the pool, which one live
            # tensor prevents.
            self._pool = torch.cuda.graph_pool_handle()
        try:
            recording = Recording(run, self._stream, self._pool)
        except BaseException:
            self._living = weakref.WeakSet()  # the pool of a failed capture takes no other
            raise
        self._living.add(recording)
        return recording

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Fill inputs, replay and copy results inside: what other streams replay waits on the
        device until that is done.
        """
        with self._lock:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(self._done)
            try:
                yield
            finally:
                self._done.record(stream)

    def finish(self) -> None:
        """The host waits until the last turn is over on the device: memory of recordings may be
        freed then.
        """
        self._done.synchronize()


def captured(recorder: Recorder, run: Callable[[], Result]) -> Callable[[], Result]:
    """The replay of `run`, recorded inside a turn of `recorder`. Raises CaptureError where that
    fails.
    """
    try:
        return recorder.record(run).replay
    except capture_errors() as error:
        raise CaptureError(reason_of(error)) from error


class SideStream:
    """A second stream for work whose results are needed later.

    It starts after what the current stream has to do when it is made.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._stream.wait_stream(torch.cuda.current_stream(device))
        self._read: Hashable = None

    def enter(self, read: Hashable = None) -> AbstractContextManager[Any]:
        """Work inside goes onto the side stream.

        read: stands for what that work reads besides tensors of the side stream, such as weights.
        Where it is not what it was the last time, the side stream waits for the current stream,
        which may have written it just now. Otherwise it does not wait: its work overlaps with that
        of the current stream.
        """
        if read is not None and read != self._read:
            self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
            self._read = read
        return torch.cuda.stream(self._stream)

    def record_event(self) -> torch.cuda.Event:
        """The side stream's work so far, for `wait_event`."""
        event = torch.cuda.Event()
        event.record(self._stream)
        return event

    def wait_event(self, event: torch.cuda.Event, tensors: Iterable[Tensor]) -> None:
        """The current stream waits on the device for `event`, and may use `tensors` of the side
        stream from then on."""
        current = torch.cuda.current_stream(self._stream.device)
        current.wait_event(event)
        for tensor in tensors:
            tensor.record_stream(current)
