"""A small model in which every part affects the masks, and short clips of a moving square."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sam2_fast.config import VIDEO_POSTPROCESSING, Options, Sam2Config
from sam2_fast.io.video_writer import VideoWriter
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
    """A predictor with random weights.

    No parameter is constant, so that the masks change if a part of the model is left out.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        all_options = Options().updated(**{**VIDEO_POSTPROCESSING, **options})
        model = SAM2VideoPredictor(config, all_options).eval()
        for parameter in model.parameters():
            if parameter.numel() > 1 and parameter.std() < 1e-5:
                parameter.add_(torch.randn(parameter.shape) * 0.2)
        # A higher presence logit: random objects must not be absent.
        model.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.fill_(2.0)
    return model


def moving_frames(count: int, height: int = 48, width: int = 72, seed: int = 0) -> np.ndarray:
    """Noise with a bright square that moves: [count, height, width, 3] uint8."""
    generator = np.random.default_rng(seed)
    background = generator.integers(0, 120, (1, height, width, 3), dtype=np.uint8)
    clip = np.repeat(background, count, axis=0)
    for t in range(count):
        left = (8 + 2 * t) % (width - 16)
        clip[t, 10:26, left : left + 16] += 120
    return clip


def write_clip(path: Path, clip: np.ndarray) -> Path:
    """Write frames [N, H, W, 3] uint8 to a video file. Skips the test without PyAV."""
    pytest.importorskip("av")
    with VideoWriter(path, *clip.shape[1:3]) as writer:
        for frame in clip:
            writer.write(frame)
    return path


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
    """The whole state of a session as values that can be compared, tensors as bytes."""

    def comparable(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            content = value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
            return str(value.dtype), tuple(value.shape), content
        if isinstance(value, dict):
            return {k: comparable(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [comparable(v) for v in value]
        if hasattr(value, "__dataclass_fields__"):
            return {k: comparable(getattr(value, k)) for k in value.__dataclass_fields__}
        return value

    return {
        "objects": [(k, comparable(v)) for k, v in session.objects.items()],
        "resets": session.resets,
        "frames": session.num_frames,
    }


@pytest.fixture
def snapshot() -> Callable[[VideoSession], Any]:
    return freeze


def collect(outputs: Any) -> dict[int, torch.Tensor]:
    """The masks of an iterator of outputs, by frame."""
    return {frame: masks.clone() for frame, _, masks in outputs}


@pytest.fixture
def masks_of() -> Callable[[Any], dict[int, torch.Tensor]]:
    return collect
