"""A small model, with changes detected by the native module or in Python."""

from __future__ import annotations

import pytest

from sam2_fast.ops.core import state
from sam2_fast.video.predictor import SAM2VideoPredictor
from tests.video.sessions import small_predictor


@pytest.fixture
def model() -> SAM2VideoPredictor:
    return small_predictor()


@pytest.fixture(params=["native", "python"], autouse=True)
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes are detected by the native module, or in Python without it."""
    if request.param == "python":
        monkeypatch.setattr(state, "native", lambda: None)
