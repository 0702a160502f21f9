"""Recorders whose captures fail, for tests of what users see then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from sam2_fast.recording.cache import Graphs
from tests.video.tape import TapeRecorder

SYNCHRONISED = "CUDA error: operation not permitted when stream is capturing\nadvice"


class FailingRecorder(TapeRecorder):
    """Attempts are counted over all recorders; those whose number `fails` accepts raise."""

    attempts = 0
    fails: Callable[[int], bool] = staticmethod(lambda attempt: True)
    at = "warm-up"

    def record(self, run: Callable[[], Any]) -> Any:
        attempt = FailingRecorder.attempts
        FailingRecorder.attempts += 1
        if not FailingRecorder.fails(attempt):
            return super().record(run)
        if FailingRecorder.at == "capture":
            run()  # and what it wrote stays in static memory
            raise RuntimeError(SYNCHRONISED)
        raise torch.OutOfMemoryError("CUDA out of memory")


class Willing(Graphs):
    """Graphs that do not mind the CPU."""

    def refuses(self, *_: Any) -> None:
        return None

    def refuses_frame(self, *_: Any) -> None:
        return None
