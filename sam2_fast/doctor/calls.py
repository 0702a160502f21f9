"""Collects the calls of ops, with their arguments, in one run of the pipeline of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sam2_fast.image.automatic import SAM2AutomaticMaskGenerator
from sam2_fast.image.predictor import SAM2ImagePredictor
from sam2_fast.ops.core import registry
from sam2_fast.ops.core.registry import Implementation
from sam2_fast.proving.rules import Call
from sam2_fast.video.predictor import SAM2VideoPredictor

OnCall = Callable[[str, Call], None]
"""Has the name of an op and the arguments of a call."""


@contextmanager
def single_backend(backend: str) -> Iterator[None]:
    """Inside the context, every op runs in `backend`, or in torch without such a backend."""
    with registry.replaced_by(_implementations_of(backend)):
        yield


@contextmanager
def observed_calls(on_call: OnCall, backend: str = "torch") -> Iterator[None]:
    """As `single_backend`, and `on_call` is called before every call of an op."""
    observed = {
        key: Implementation(*key, _observed(on_call, key[0], plain.run), lambda *_: None)
        for key, plain in _implementations_of(backend).items()
    }
    with registry.replaced_by(observed):
        yield


def _implementations_of(backend: str) -> dict[tuple[str, str], Implementation]:
    implementations = registry.all_implementations()
    return {
        key: implementation
        for key, implementation in implementations.items()
        if key[1] == (backend if (key[0], backend) in implementations else "torch")
    }


def _observed(on_call: OnCall, op: str, plain: Callable[..., Any]) -> Callable[..., Any]:
    def run(*arguments: Any, **named: Any) -> Any:
        on_call(op, Call(arguments, named))
        return plain(*arguments, **named)

    return run


def encode_image(model: SAM2VideoPredictor, picture: npt.NDArray[np.uint8]) -> SAM2ImagePredictor:
    """A predictor that has encoded `picture`, [H, W, 3] RGB, without CUDA graphs."""
    model.graphs = None
    images = SAM2ImagePredictor(model)
    images.graphs = None
    images.set_image(picture)
    return images


def run_pipeline(
    model: SAM2VideoPredictor,
    picture: npt.NDArray[np.uint8],
    video: Any,
    frames: int,
) -> None:
    """Run a model on an image, a click, automatic masks, and two objects in a video.

    picture: [H, W, 3] RGB; video: as for `init_state`; frames: number of tracked frames after the
    first. No CUDA graph is captured.
    """
    images = encode_image(model, picture)
    height, width = picture.shape[:2]
    click = np.array([[0.4 * width, 0.5 * height]])
    images.predict(point_coords=click, point_labels=np.array([1]))
    generator = SAM2AutomaticMaskGenerator(
        model,
        points_per_side=4,
        pred_iou_thresh=0.0,
        stability_score_thresh=0.0,
        box_nms_thresh=0.9,
        min_mask_region_area=20,
    )
    generator.predictor.graphs = None
    generator.generate(picture)
    state = model.init_state(video)
    for i in range(2):
        point = [[(0.15 + 0.3 * i) * width, 0.4 * height]]
        model.add_new_points_or_box(state, 0, i, points=point, labels=[1])
    for _ in model.propagate_in_video(state, max_frame_num_to_track=frames):
        pass


def perturb_constants(model: torch.nn.Module) -> None:
    """Add noise to parameters that are constant, in place.

    Otherwise a kernel that leaves out such a part could have the correct result.
    """
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() > 1 and parameter.float().std() < 1e-5:
                noise = 0.1 * torch.randn(parameter.shape, generator=generator)
                parameter.add_(noise.to(parameter))


def moving_squares(frames: int, height: int = 480, width: int = 640) -> npt.NDArray[np.uint8]:
    """A video of squares that move over noise: [frames, height, width, 3], always the same."""
    random = np.random.default_rng(0)
    video = random.integers(0, 80, (frames, height, width, 3), dtype=np.uint8)
    for i, frame in enumerate(video):
        for left, top, side in ((60, 150, 90), (240, 160, 120), (420, 60, 60)):
            x = left + 6 * i
            frame[top : top + side, x : x + side] += np.uint8(80 + side)
    return video
