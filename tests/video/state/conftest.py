"""A shorter clip, the state of a click on it, and the masks that follow."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.video.conftest import moving_frames
from tests.video.states import clicked, masks


@pytest.fixture(scope="session")
def clip() -> np.ndarray:
    return moving_frames(8)


@pytest.fixture
def state(predictor: Any, clip: np.ndarray) -> Any:
    return clicked(predictor, clip)


@pytest.fixture(scope="session")
def plain(predictor: Any, clip: np.ndarray) -> torch.Tensor:
    return masks(predictor, clicked(predictor, clip))
