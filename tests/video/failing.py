"""A recorder whose captures fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tests.video.tape import TapeRecorder

CAPTURE_ERROR = "CUDA error: operation not permitted when stream is capturing\nadvice"


class FailingRecorder(TapeRecorder):
    """A recorder that raises in some attempts, which are counted over all recorders.

    `fails` tells whether an attempt raises, `at` whether it does so in the warm-up or the capture.
    """

    attempts = 0
    fails: Callable[[int], bool] = staticmethod(lambda attempt: True)
    at = "warm-up"

    def record(self, run: Callable[[], Any]) -> Any:
        attempt = FailingRecorder.attempts
        FailingRecorder.attempts += 1
        if not FailingRecorder.fails(attempt):
            return super().record(run)
        if FailingRecorder.at == "capture":
            run()  # its results stay in static memory
            raise RuntimeError(CAPTURE_ERROR)
        raise torch.OutOfMemoryError("CUDA out of memory")
