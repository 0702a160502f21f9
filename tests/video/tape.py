"""A CUDA graph for CPU tensors: what ran once is run again on the same tensors, with no Python of
the recorded function in between.

What the function had baked in (a number, an address, a choice) stays as it was when it was
recorded, as in a real graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from sam2_fast.ops.core import tracing

Result = TypeVar("Result")
FORBIDDEN = {"_local_scalar_dense", "item", "lift_fresh", "nonzero"}
UNWRITTEN = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}


class Tape(TorchDispatchMode):
    """Records torch's operators and, in the interpreter, Triton's launches."""

    def __init__(self) -> None:
        super().__init__()
        self._steps: list[Callable[[], None]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket.__name__ in FORBIDDEN:
            raise AssertionError(
                f"{func}: while it is recorded nothing looks at a number, and no list goes to the "
                f"device"
            )
        out = func(*args, **kwargs)
        if func.overloadpacket.__name__ not in UNWRITTEN:

            def again() -> None:
                for old, new in zip(
                    tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True
                ):
                    if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)

            self._steps.append(again)
        return out

    def launch(self, run: Callable[[], None]) -> None:
        """Run and record a launch; the interpreter's own operators are no part of it."""
        with _disable_current_modes():
            run()
        self._steps.append(run)

    def play(self) -> None:
        for step in self._steps:
            step()


_tapes: list[Tape] = []


class TapeRecorder:
    """As `sam2_fast.recording.cuda_graph.Recorder`."""

    recorded = 0

    def __init__(self, device: torch.device) -> None:
        del device

    def record(self, run: Callable[[], Result]) -> TapeRecording:
        TapeRecorder.recorded += 1
        return TapeRecording(run)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        yield

    def synchronize(self) -> None:
        pass


@contextmanager
def _as_in_a_capture() -> Iterator[None]:
    """A tape is a TorchDispatchMode, under which ops run their definitions; while a CUDA graph is
    captured they run their kernels.
    """
    plain = tracing.recording_reason
    tracing.recording_reason = lambda: None
    try:
        yield
    finally:
        tracing.recording_reason = plain


class TapeRecording:
    def __init__(self, run: Callable[[], Any]) -> None:
        run()
        self._tape = Tape()
        _tapes.append(self._tape)
        try:
            with _as_in_a_capture(), self._tape:
                self._result = run()
        finally:
            _tapes.pop()
        for x in tree_leaves(self._result):
            x.fill_(float("nan"))  # what was computed while recording is not a result

    def replay(self) -> Any:
        self._tape.play()
        return self._result


class Plain:
    """A recording that is none: the function itself."""

    def __init__(self, run: Callable[[], Any]) -> None:
        self.replay = run


class PlainRecorder(TapeRecorder):
    def record(self, run: Callable[[], Result]) -> Plain:
        return Plain(run)


def record_launches() -> None:
    """Let tapes see what Triton's interpreter launches."""
    from triton.runtime.interpreter import GridExecutor

    plain = GridExecutor.__call__

    def launch(self: Any, *args: Any, **kwargs: Any) -> None:
        if _tapes:
            _tapes[-1].launch(lambda: plain(self, *args, **kwargs))
        else:
            plain(self, *args, **kwargs)

    GridExecutor.__call__ = launch
