"""sam2_fast: SAM 2 for images and videos, with the official API and its own kernels."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from sam2_fast.build_sam import build_sam2 as build_sam2
    from sam2_fast.build_sam import build_sam2_hf as build_sam2_hf
    from sam2_fast.build_sam import build_sam2_video_predictor as build_sam2_video_predictor
    from sam2_fast.build_sam import build_sam2_video_predictor_hf as build_sam2_video_predictor_hf
    from sam2_fast.config import Options as Options
    from sam2_fast.config import Sam2Config as Sam2Config
    from sam2_fast.config import preset as preset
    from sam2_fast.environment import info as info
    from sam2_fast.image.automatic import SAM2AutomaticMaskGenerator as SAM2AutomaticMaskGenerator
    from sam2_fast.image.predictor import SAM2ImagePredictor as SAM2ImagePredictor
    from sam2_fast.model import Sam2 as Sam2
    from sam2_fast.official.base import SAM2Base as SAM2Base
    from sam2_fast.ops.connected_components import connected_components as connected_components
    from sam2_fast.video.camera import SAM2CameraPredictor as SAM2CameraPredictor
    from sam2_fast.video.predictor import SAM2VideoPredictor as SAM2VideoPredictor
    from sam2_fast.weights.checkpoint import CheckpointError as CheckpointError
    from sam2_fast.weights.hub import WeightsUnavailableError as WeightsUnavailableError

_MODULES = {
    "build_sam2": "build_sam",
    "build_sam2_hf": "build_sam",
    "build_sam2_video_predictor": "build_sam",
    "build_sam2_video_predictor_hf": "build_sam",
    "CheckpointError": "weights.checkpoint",
    "Options": "config",
    "SAM2AutomaticMaskGenerator": "image.automatic",
    "SAM2Base": "official.base",
    "SAM2CameraPredictor": "video.camera",
    "SAM2ImagePredictor": "image.predictor",
    "SAM2VideoPredictor": "video.predictor",
    "Sam2": "model",
    "Sam2Config": "config",
    "WeightsUnavailableError": "weights.hub",
    "connected_components": "ops.connected_components",
    "info": "environment",
    "preset": "config",
}
__all__ = ["__version__", *_MODULES]


def __getattr__(name: str) -> Any:
    """Import public names on first use.

    `import sam2_fast` stays fast and needs no optional package.
    """
    if name not in _MODULES:
        raise AttributeError(f"module 'sam2_fast' has no attribute {name!r}")
    return getattr(import_module(f"sam2_fast.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
