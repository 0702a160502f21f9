"""The parts of the real model that a GPU would run, at 1024 pixels in bfloat16, as functions."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch

Run = Callable[[], Any]
STAGES = ("encode 1", "encode 4", "track 1", "track 8", "click", "automatic masks")


def stages(name: str) -> dict[str, Run]:
    """Parts of the pipeline by name, for a model with seeded random weights on the CPU.

    name: a preset of `build_sam2`. "encode B" is the image encoder for B images, "track N" a tracked frame of
    N objects with full memories (7 maps and 16 pointers each), "click" a prompt on an encoded image up to the
    masks, "automatic masks" a 32 x 32 grid of prompts on an encoded image.
    """
    from sam2_fast.build_sam import build_sam2
    from sam2_fast.image_predictor import SAM2ImagePredictor
    from sam2_fast.mask_generator import SAM2AutomaticMaskGenerator

    model = build_sam2(name, device="cpu", dtype=torch.bfloat16, seed=0)
    size = model.config.image_size
    images = torch.zeros(4, 3, size, size)
    picture = np.zeros((480, 640, 3), np.uint8)
    clicks = SAM2ImagePredictor(model)
    clicks.graphs = None
    generator = SAM2AutomaticMaskGenerator(model, pred_iou_thresh=0.0, stability_score_thresh=0.0)
    point = {"point_coords": np.array([[300.0, 200.0]]), "point_labels": np.array([1])}

    def click() -> Any:
        return clicks.predict(**point)

    runs: dict[str, Run] = {
        "encode 1": lambda: model.encode_image(images[:1]),
        "encode 4": lambda: model.encode_image(images),
        "track 1": _tracked_frame(model, 1),
        "track 8": _tracked_frame(model, 8),
        "click": click,
        "automatic masks": lambda: generator.generate(picture),
    }
    clicks.set_image(picture)
    return runs


class _Uncaptured:
    """Stands for `Recorder` and for a recording: the function itself, in place of a CUDA graph."""

    def __init__(self, run: Run | None = None) -> None:
        self.replay = run

    def record(self, run: Run) -> _Uncaptured:
        return _Uncaptured(run)

    def turn(self) -> Any:
        return nullcontext()


def _tracked_frame(model: Any, objects: int) -> Run:
    """One frame as `Graphs.track` records it, of objects that remember as much as they may."""
    from sam2_fast.frame_graph import FrameGraph, Remembered, room_for
    from sam2_fast.types import Features

    config = model.config
    maps = [torch.zeros(config.grid**2, config.memory_dim, dtype=model.dtype) for _ in range(config.num_maps)]
    pointers = [torch.zeros(config.hidden_dim, dtype=model.dtype)] * model.options.max_obj_ptrs_in_encoder
    remembered = Remembered(
        maps=[maps] * objects,
        rows=[list(range(config.num_maps))] * objects,
        pointers=[pointers] * objects,
        ages=[list(range(1, len(pointers) + 1))] * objects,
        longest=16,
    )
    dim, side = config.hidden_dim, config.grid
    shapes = ((dim, side), (dim // 4, 2 * side), (dim // 8, 4 * side))
    # the encoder's maps have their channels innermost
    levels = [torch.zeros(1, n, n, c, dtype=model.dtype).permute(0, 3, 1, 2) for c, n in shapes]
    features = Features(*levels)
    graph = FrameGraph(model, features, room_for(model, remembered), 16, False, model.dtype)
    recorder: Any = _Uncaptured()
    return lambda: graph.track(recorder, features, remembered)
