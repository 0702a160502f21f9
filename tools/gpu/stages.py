"""Parts of the pipeline with the real model, as functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

Run = Callable[[], Any]
STAGES = ("encode 1", "encode 4", "track 1", "track 8", "click", "automatic masks")


def stages(
    name: str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    size: int = 1024,
    graph: Callable[[Run], Run] = lambda run: run,
) -> dict[str, Run]:
    """Parts of the pipeline by name, for a model with random weights and a fixed seed.

    "encode B" is the image encoder for B images. "track N" is a tracked frame of N objects with
    full memories (7 maps and 16 pointers each). "click" is a prompt on an encoded image up to the
    masks. "automatic masks" is a 32 x 32 grid of prompts, including the encoding.

    name: a preset of `build_sam2`. size: side of the image in pixels.
    graph: returns the replay of a CUDA graph of a function. It is applied to encodings and frames
    at their first call.
    """
    from sam2_fast.build_sam import build_sam2
    from sam2_fast.image.automatic import SAM2AutomaticMaskGenerator
    from sam2_fast.image.predictor import SAM2ImagePredictor

    model = build_sam2(name, device=device, dtype=dtype, seed=0, image_size=size)
    images = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    picture = np.zeros((480, 640, 3), np.uint8)
    clicks = SAM2ImagePredictor(model)
    clicks.graphs = None
    generator = SAM2AutomaticMaskGenerator(model, pred_iou_thresh=0.0, stability_score_thresh=0.0)
    point = {"point_coords": np.array([[300.0, 200.0]]), "point_labels": np.array([1])}

    def click() -> Any:
        if not clicks._is_image_set:
            clicks.set_image(picture)
        return clicks.predict(**point)

    return {
        "encode 1": _lazily(graph, lambda: model.encode_image(images[:1])),
        "encode 4": _lazily(graph, lambda: model.encode_image(images)),
        "track 1": _lazily(graph, _tracked_frame(model, 1)),
        "track 8": _lazily(graph, _tracked_frame(model, 8)),
        "click": click,
        "automatic masks": lambda: generator.generate(picture),
    }


def _lazily(graph: Callable[[Run], Run], run: Run) -> Run:
    """A function that calls `graph(run)()`, in which `graph(run)` is computed at the first call."""
    replays: list[Run] = []

    def call() -> Any:
        if not replays:
            replays.append(graph(run))
        return replays[0]()

    return call


def _tracked_frame(model: Any, objects: int) -> Run:
    """The part of a tracked frame that is a CUDA graph, with full memories of all objects."""
    from sam2_fast.recording.frame import FrameGraph, room_for
    from sam2_fast.types import Features, Remembered

    config = model.config
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(model.device, model.dtype)

    maps = [noise(config.grid**2, config.memory_dim) for _ in range(config.num_maps)]
    pointers = [noise(config.hidden_dim)] * model.options.max_obj_ptrs_in_encoder
    remembered = Remembered(
        maps=[maps] * objects,
        rows=[list(range(config.num_maps))] * objects,
        pointers=[pointers] * objects,
        ages=[list(range(1, len(pointers) + 1))] * objects,
        longest=16,
    )
    dim = config.hidden_dim
    side = config.grid
    shapes = ((dim, side), (dim // 4, 2 * side), (dim // 8, 4 * side))
    # The encoder's maps are in channels-last memory format.
    levels = [noise(1, n, n, c).permute(0, 3, 1, 2) for c, n in shapes]
    features = Features(*levels)
    multimask = model.options.use_multimask(0, is_initial=False)
    frame = FrameGraph(model, features, room_for(model, remembered), 16, multimask, model.dtype)
    # The frame stores addresses of these tensors, so they must live as long as the function.
    tensors = frame.fill(features, remembered)
    return lambda keep_alive=tensors: frame.run()
