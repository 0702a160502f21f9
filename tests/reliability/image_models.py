"""A small image predictor, and its answer to a click."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from sam2_fast.image.predictor import SAM2ImagePredictor
from sam2_fast.official.base import SAM2Base
from tests.test_image_predictor import CLICK, picture, small_model

__all__ = ["CLICK", "answer", "picture", "predictor", "shared_model"]


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
