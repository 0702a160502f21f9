"""CUDA graphs: work on a GPU that is captured once and replayed.

A replay is one launch for the host instead of hundreds.
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

WARM_UP_RUNS = 2
"""Runs before a capture.

In these runs kernels are compiled and loaded, and libraries select algorithms and allocate their
workspaces.
"""

_FAILED_GRAPHS: list[torch.cuda.CUDAGraph] = []
"""Graphs of failed captures.

The allocator may keep a callback that refers to the graph object, so the object must not be freed.
After `reset` it holds no memory of the device.
"""


class CaptureError(RuntimeError):
    """The warm-up or the capture of a CUDA graph failed; the message is the reason."""


def capture_errors() -> tuple[type[Exception], ...]:
    """Classes of the errors that torch and Triton raise if work cannot run or be captured."""
    triton = sys.modules.get("triton.errors")  # if it was never imported, no kernel of it can fail
    return (RuntimeError,) if triton is None else (RuntimeError, triton.TritonError)


class CapturedGraph(Generic[Result]):
    """One function as a CUDA graph.

    `result` is what the function returned during the capture: tensors that every replay writes
    again.
    """

    def __init__(self, run: Callable[[], Result], stream: torch.cuda.Stream, pool: Any) -> None:
        """Warm up, then capture `run` on `stream`; this waits for the device.

        run: reads and writes tensors at fixed addresses, without any host synchronisation.
        Errors of `run` and of torch are passed on. After an error the capture has ended and the
        current stream is the same as before.
        """
        device = stream.device
        kind = device.type
        # The caller's autocast caches cast weights until it exits. The graph is replayed later and
        # must not read them.
        casts = torch.autocast(
            kind,
            torch.get_autocast_dtype(kind),
            torch.is_autocast_enabled(kind),
            cache_enabled=False,
        )
        with exclusive(), casts, torch.cuda.device(device):
            _warm_up(run, stream)
            self._graph = torch.cuda.CUDAGraph()
            self.result = _capture_on(stream, self._graph, run, pool)

    def replay(self) -> Result:
        """Enqueue the captured work on the current stream."""
        self._graph.replay()
        return self.result


def _warm_up(run: Callable[[], Any], stream: torch.cuda.Stream) -> None:
    current = torch.cuda.current_stream(stream.device)
    stream.wait_stream(current)
    try:
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_RUNS):
                run()
    # Also after a failure: the tensors that `run` writes may be freed, and their memory used again
    # on the current stream.
    finally:
        current.wait_stream(stream)


def _capture_on(
    stream: torch.cuda.Stream,
    graph: torch.cuda.CUDAGraph,
    run: Callable[[], Result],
    pool: Any,
) -> Result:
    scope = torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local")
    try:
        # If beginning or ending the capture raises, `scope` does not restore the current stream.
        # The outer context does.
        with torch.cuda.stream(stream), scope:
            return run()
    except BaseException:
        _abandon(graph, stream.device, pool)
        raise


def _abandon(graph: torch.cuda.CUDAGraph, device: torch.device, pool: Any) -> None:
    """Undo the side effects of a failed capture."""
    _FAILED_GRAPHS.append(graph)
    graph.reset()
    # If `capture_end` raises, the allocator of some versions of torch stays in capture mode, and
    # memory that several streams used is never freed. In other versions the call below raises "not
    # currently recording".
    with suppress(RuntimeError):
        torch._C._cuda_endAllocateToPool(device.index, pool)


class Recorder:
    """Captures CUDA graphs that share scratch memory, and runs one of them at a time.

    The result of one graph may lie in the scratch memory of another one. Copy results inside
    `exclusive`.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # One stream for all captures: libraries allocate a workspace for each stream.
        self._stream = torch.cuda.Stream(device)
        self._pool: Any = None
        # Graphs that use `_pool`.
        self._live_graphs: weakref.WeakSet[CapturedGraph[Any]] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._done = torch.cuda.Event()

    def record(self, run: Callable[[], Result]) -> CapturedGraph[Result]:
        """`run` as a CUDA graph; call it inside `exclusive`.

        Errors of `run`, torch and Triton are passed on.
        """
        if not self._live_graphs:
            # The id of a pool is only valid while a graph uses the pool. Torch asserts this when a
            # capture begins, unless `empty_cache` has removed the pool, and one live tensor in the
            # pool prevents that.
            self._pool = torch.cuda.graph_pool_handle()
        try:
            graph = CapturedGraph(run, self._stream, self._pool)
        except BaseException:
            self._live_graphs = weakref.WeakSet()  # do not use the pool of a failed capture again
            raise
        self._live_graphs.add(graph)
        return graph

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the lock of this recorder; fill inputs, replay and copy results inside.

        The current stream waits for the work of the previous holder, so the order holds on the
        device too.
        """
        with self._lock:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(self._done)
            try:
                yield
            finally:
                self._done.record(stream)

    def synchronize(self) -> None:
        """Wait on the host until the work of the last `exclusive` block is done.

        The memory of the graphs may be freed afterwards.
        """
        self._done.synchronize()


def capture(recorder: Recorder, run: Callable[[], Result]) -> Callable[[], Result]:
    """The replay of `run`, captured by `recorder`; call it inside `recorder.exclusive`.

    Raises CaptureError if the capture fails.
    """
    try:
        return recorder.record(run).replay
    except capture_errors() as error:
        raise CaptureError(reason_of(error)) from error


class SideStream:
    """A second stream, for work with results that are needed later.

    It first waits for the work that is on the current stream when the object is created.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._stream.wait_stream(torch.cuda.current_stream(device))
        self._inputs: Hashable = None

    def enter(self, inputs: Hashable = None) -> AbstractContextManager[Any]:
        """A context in which work is enqueued on the side stream.

        inputs: identifies what the work reads besides tensors of the side stream, such as weights,
        or None. If it differs from the last one, the side stream waits for the current stream,
        which may just have written these inputs. Otherwise it does not wait, and its work overlaps
        with that of the current stream.
        """
        if inputs is not None and inputs != self._inputs:
            self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
            self._inputs = inputs
        return torch.cuda.stream(self._stream)

    def record_event(self) -> torch.cuda.Event:
        """An event after all work that is on the side stream now, for `wait_event`."""
        event = torch.cuda.Event()
        event.record(self._stream)
        return event

    def wait_event(self, event: torch.cuda.Event, tensors: Iterable[Tensor]) -> None:
        """The current stream waits for `event` on the device.

        After that it may use `tensors`, which belong to the side stream.
        """
        current = torch.cuda.current_stream(self._stream.device)
        current.wait_event(event)
        for tensor in tensors:
            tensor.record_stream(current)
