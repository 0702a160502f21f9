"""The official video predictor, adapted to float32 and to machines without its extension."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

DATA = Path(__file__).resolve().parents[3].parent / "shared" / "data"


@pytest.fixture(scope="session")
def data() -> Path:
    """Real images and clips."""
    if not DATA.is_dir():
        pytest.skip("needs the test media in ../shared/data next to the repository")
    return DATA


def fill_holes_by_scipy(masks: torch.Tensor, max_area: int) -> torch.Tensor:
    """Holes filled as by the official extension, which is not compiled, without our kernels."""
    ndimage = pytest.importorskip("scipy.ndimage")
    out = masks.clone()
    for i in range(masks.shape[0]):
        labels, _ = ndimage.label((masks[i, 0] <= 0).numpy(), np.ones((3, 3)))
        areas = np.bincount(labels.ravel())
        out[i, 0][torch.from_numpy((labels > 0) & (areas[labels] <= max_area))] = 0.1
    return out


def convert_memories_to_float32(model: Any) -> Any:
    """Make a float32 official predictor convert its bfloat16 memories before attending to them.

    Without the conversion it raises, which is a defect of the official code.
    """
    original = model._prepare_memory_conditioned_features

    def convert(output: dict[str, Any]) -> dict[str, Any]:
        features = output["maskmem_features"]
        return {**output, "maskmem_features": features if features is None else features.float()}

    def prepare(*arguments: Any, output_dict: Any, **options: Any) -> Any:
        converted = {
            name: {t: convert(o) for t, o in frames.items()} for name, frames in output_dict.items()
        }
        return original(*arguments, output_dict=converted, **options)

    model._prepare_memory_conditioned_features = prepare
    return model


@pytest.fixture(scope="session")
def official_video(official_peer: ModuleType) -> Callable[..., Any]:
    """A function of size, version and image size: an official video predictor.

    Constant weights are replaced by random ones. Predictors are cached.
    """
    import sam2.sam2_video_predictor as module

    module.fill_holes_in_mask_scores = fill_holes_by_scipy
    predictors: dict[Any, Any] = {}

    def build(size: str = "t", version: str = "sam2.1", image_size: int = 256) -> Any:
        key = (size, version, image_size)
        if key not in predictors:
            model = official_peer.build_video(
                size, version=version, overrides=[f"++model.image_size={image_size}"], device="cpu"
            )
            predictors[key] = convert_memories_to_float32(official_peer.enliven(model).eval())
        return predictors[key]

    return build


def iou(a: torch.Tensor, b: torch.Tensor) -> float:
    union = ((a > 0) | (b > 0)).sum().item()
    return 1.0 if union == 0 else ((a > 0) & (b > 0)).sum().item() / union


@pytest.fixture(scope="session")
def mask_iou() -> Callable[[torch.Tensor, torch.Tensor], float]:
    return iou
