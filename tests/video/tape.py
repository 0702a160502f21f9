"""CUDA graphs for CPU tensors: operators that ran once are run again on the same tensors.

The Python code of the function is not run again. As in a real CUDA graph, values that it computed
in Python (a number, an address, a choice) stay as they were during the capture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from sam2_fast.ops.core import tracing
from sam2_fast.recording.cache import Graphs

Result = TypeVar("Result")
FORBIDDEN = {"_local_scalar_dense", "item", "lift_fresh", "nonzero"}
UNINITIALIZED = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}


class Tape(TorchDispatchMode):
    """Records the operators of torch and, in the interpreter, the launches of Triton kernels."""

    def __init__(self) -> None:
        super().__init__()
        self._steps: list[Callable[[], None]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket.__name__ in FORBIDDEN:
            raise AssertionError(
                f"{func}: no host synchronisation and no copy of a list to the device is allowed "
                f"during a capture"
            )
        out = func(*args, **kwargs)
        if func.overloadpacket.__name__ not in UNINITIALIZED:

            def repeat() -> None:
                results = tree_leaves(func(*args, **kwargs))
                for old, new in zip(tree_leaves(out), results, strict=True):
                    if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)

            self._steps.append(repeat)
        return out

    def launch(self, run: Callable[[], None]) -> None:
        """Run and record a launch, but not the operators that the interpreter runs for it."""
        with _disable_current_modes():
            run()
        self._steps.append(run)

    def play(self) -> None:
        for step in self._steps:
            step()


_tapes: list[Tape] = []


class TapeRecorder:
    """`sam2_fast.recording.cuda_graph.Recorder` with tapes.

    `captures` is counted over all recorders.
    """

    captures = 0

    def __init__(self, device: torch.device) -> None:
        del device

    def record(self, run: Callable[[], Result]) -> TapeGraph:
        TapeRecorder.captures += 1
        return TapeGraph(run)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        yield

    def synchronize(self) -> None:
        pass


@contextmanager
def _run_kernels() -> Iterator[None]:
    """Run the kernels of ops under a tape, as in the capture of a CUDA graph.

    A tape is a TorchDispatchMode, under which ops otherwise run their definitions.
    """
    original = tracing.recording_reason
    tracing.recording_reason = lambda: None
    try:
        yield
    finally:
        tracing.recording_reason = original


class TapeGraph:
    """A function recorded on a tape after one run as warm-up."""

    def __init__(self, run: Callable[[], Any]) -> None:
        run()
        self._tape = Tape()
        _tapes.append(self._tape)
        try:
            with _run_kernels(), self._tape:
                self._result = run()
        finally:
            _tapes.pop()
        for x in tree_leaves(self._result):
            x.fill_(float("nan"))  # the results of a capture must not be used

    def replay(self) -> Any:
        self._tape.play()
        return self._result


class EagerGraph:
    """Runs the function itself on every replay."""

    def __init__(self, run: Callable[[], Any]) -> None:
        self.replay = run


class EagerRecorder(TapeRecorder):
    """A recorder that records nothing."""

    def record(self, run: Callable[[], Result]) -> EagerGraph:
        return EagerGraph(run)


class GraphsOnCpu(Graphs):
    """CUDA graphs that are not refused on a CPU; tracked frames may be refused."""

    def refuses(self, *_: Any) -> None:
        return None


class UnconditionalGraphs(GraphsOnCpu):
    """CUDA graphs that are never refused."""

    def refuses_frame(self, *_: Any) -> None:
        return None


def record_launches() -> None:
    """Make tapes record the launches in Triton's interpreter."""
    from triton.runtime.interpreter import GridExecutor

    original = GridExecutor.__call__

    def launch(self: Any, *args: Any, **kwargs: Any) -> None:
        if _tapes:
            _tapes[-1].launch(lambda: original(self, *args, **kwargs))
        else:
            original(self, *args, **kwargs)

    GridExecutor.__call__ = launch
