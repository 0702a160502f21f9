"""A small image predictor, and failures at any of its operations or lines."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import FrameType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sam2_fast.image.predictor import SAM2ImagePredictor
from sam2_fast.official.base import SAM2Base
from tests.test_image_predictor import CLICK, picture, small_model

__all__ = ["CLICK", "Failing", "answer", "interrupted", "picture", "predictor", "shared_model"]


def predictor(**options: Any) -> SAM2ImagePredictor:
    """A predictor of a small random model, without an image."""
    return SAM2ImagePredictor(shared_model(), **options)


@cache
def shared_model() -> SAM2Base:
    """`small_model`, built once. A test must not change it."""
    return small_model()


def answer(image_predictor: SAM2ImagePredictor) -> npt.NDArray[np.float32]:
    """The low-resolution logits of one click."""
    return image_predictor.predict(**CLICK)[2]


class Failing(TorchDispatchMode):
    """Raises instead of running operation `fails_at`; counts operations."""

    def __init__(self, fails_at: int) -> None:
        super().__init__()
        self.fails_at = fails_at
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.count += 1
        if self.count - 1 == self.fails_at:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return func(*args, **(kwargs or {}))


@contextmanager
def interrupted(at: int, is_ours: Callable[[str], bool]) -> Iterator[None]:
    """Raise KeyboardInterrupt at line `at` that is executed in files of `is_ours`."""
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        if not is_ours(frame.f_code.co_filename):
            return None
        if event == "line":
            count += 1
            if count - 1 == at:
                raise KeyboardInterrupt
        return trace

    previous = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(previous)
