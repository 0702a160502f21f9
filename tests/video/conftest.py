"""A small seeded model whose every part matters, and short clips of moving shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from sam2_fast.config import VIDEO_POSTPROCESSING, Options, Sam2Config
from sam2_fast.video.predictor import SAM2VideoPredictor
from sam2_fast.video.session import VideoSession

SMALL = Sam2Config(
    embed_dim=16,
    stages=(1, 1, 2, 1),
    global_blocks=(3,),
    image_size=64,
    memory_layers=2,
    memory_ffn_dim=32,
    decoder_mlp_dim=32,
)


def small_predictor(
    seed: int = 0, config: Sam2Config = SMALL, **options: Any
) -> SAM2VideoPredictor:
    """A predictor with random weights in which no parameter is constant, so that a part that is
    dropped changes the masks.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = SAM2VideoPredictor(
            config, Options().updated(**{**VIDEO_POSTPROCESSING, **options})
        ).eval()
        for parameter in model.parameters():
            if parameter.numel() > 1 and parameter.std() < 1e-5:
                parameter.add_(torch.randn(parameter.shape) * 0.2)
        # random objects must not be absent: raise the presence logit, and centre the masks
        model.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.fill_(2.0)
    return model


def moving_frames(count: int, height: int = 48, width: int = 72, seed: int = 0) -> np.ndarray:
    """[count, height, width, 3] uint8: noise with a bright square that moves."""
    generator = np.random.default_rng(seed)
    clip = np.repeat(
        generator.integers(0, 120, (1, height, width, 3), dtype=np.uint8), count, axis=0
    )
    for t in range(count):
        clip[t, 10:26, (8 + 2 * t) % (width - 16) : (8 + 2 * t) % (width - 16) + 16] += 120
    return clip


@pytest.fixture(scope="session")
def predictor() -> SAM2VideoPredictor:
    return small_predictor()


@pytest.fixture
def make_predictor() -> Callable[..., SAM2VideoPredictor]:
    return small_predictor


@pytest.fixture(scope="session")
def clip() -> np.ndarray:
    return moving_frames(20)


@pytest.fixture
def make_clip() -> Callable[..., np.ndarray]:
    return moving_frames


def freeze(session: VideoSession) -> Any:
    """All of a session's state as comparable values, tensors by their bytes."""

    def plain(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return (
                str(value.dtype),
                tuple(value.shape),
                value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes(),
            )
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        if hasattr(value, "__dataclass_fields__"):
            return {k: plain(getattr(value, k)) for k in value.__dataclass_fields__}
        return value

    return {
        "objects": [(k, plain(v)) for k, v in session.objects.items()],
        "resets": session.resets,
        "frames": session.num_frames,
    }


@pytest.fixture
def snapshot() -> Callable[[VideoSession], Any]:
    return freeze


def collect(outputs: Any) -> dict[int, torch.Tensor]:
    """frame -> masks of an iterator of outputs."""
    return {frame: masks.clone() for frame, _, masks in outputs}


@pytest.fixture
def masks_of() -> Callable[[Any], dict[int, torch.Tensor]]:
    return collect
