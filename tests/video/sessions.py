"""A small predictor, a clip of a moving square, and sessions, with CUDA graphs or without."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sam2_fast.config import Options, Sam2Config
from sam2_fast.ops.core import native, registry
from sam2_fast.ops.mask_decoder.triton_kernels import triton_decoder
from sam2_fast.ops.memory_attention.triton_kernels import triton_attention
from sam2_fast.ops.memory_encoder import _triton_encoder
from sam2_fast.recording import cache as graphs_module
from sam2_fast.recording.cache import Graphs
from sam2_fast.video import lookahead as ahead_module
from sam2_fast.video.predictor import SAM2VideoPredictor

SMALL = Sam2Config(
    embed_dim=16,
    stages=(1, 1, 1, 1),
    global_blocks=(2,),
    windows=(8, 4, 4, 2),
    image_size=64,
    memory_layers=2,
    memory_ffn_dim=32,
    decoder_mlp_dim=32,
    fuser_dim=32,
    num_maps=3,
)


def small_predictor(**options: Any) -> SAM2VideoPredictor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        predictor = SAM2VideoPredictor(
            SMALL, Options(fill_hole_area=8, max_obj_ptrs_in_encoder=4).updated(**options)
        ).eval()
        for name, p in predictor.named_parameters():
            if name.endswith("bias") or "tpos" in name or "embed" in name:
                torch.nn.init.normal_(p, std=0.2)
        predictor.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.data.fill_(3.0)
    return predictor


def frames(count: int = 7) -> np.ndarray:
    """Noise with a bright square that moves: [count, 60, 80, 3] uint8."""
    rng = np.random.default_rng(0)
    video = rng.integers(0, 60, (count, 60, 80, 3), dtype=np.uint8)
    for i in range(count):
        video[i, 20:40, 5 + 4 * i : 25 + 4 * i] += 150
    return video


def run_in_triton(*ops: str) -> None:
    """Run these ops of a tracked frame in Triton's interpreter and all others in torch.

    A tape can record both, unlike kernels of the native module.
    """
    native.native = lambda: None
    backends: dict[str, Any] = {
        "memory_attention": triton_attention,
        "mask_decoder": triton_decoder,
        "memory_encoder": _triton_encoder,
    }
    for op in ops:
        registry._implementations[op, "triton"] = registry.Implementation(
            op, "triton", backends[op], lambda *_: None
        )


class NoSideStream:
    """`sam2_fast.recording.cuda_graph.SideStream` for a CPU, which has no streams."""

    def __init__(self, device: torch.device) -> None:
        del device

    def enter(self, read: object = None) -> AbstractContextManager[None]:
        del read
        return nullcontext()

    def record_event(self) -> str:
        return "event"

    def wait_event(self, event: str, tensors: Any) -> None:
        assert event == "event" and all(isinstance(x, Tensor) for x in tensors)


def use_recorder(predictor: SAM2VideoPredictor, recorder: type[Any]) -> SAM2VideoPredictor:
    """Make the predictor use CUDA graphs on the CPU, which `recorder` captures; returns it."""
    graphs_module.Recorder = recorder
    ahead_module.SideStream = NoSideStream
    Graphs.refuses_frame = Graphs.refuses = lambda *_: None
    predictor.graphs = Graphs()
    return predictor


def short_session(predictor: SAM2VideoPredictor) -> Iterator[Tensor]:
    """Masks of two objects on three frames, one of which is corrected."""
    state = predictor.init_state(frames(3))
    for i in range(2):
        predictor.add_new_points_or_box(state, 0, i, points=[[10.0 + 20 * i, 30.0]], labels=[1])
    for frame, _, masks in predictor.propagate_in_video(state):
        yield masks
        if frame == 1:
            predictor.add_new_points_or_box(state, 1, 0, points=[[30.0, 30.0]], labels=[0])


def edited_session(predictor: SAM2VideoPredictor) -> Iterator[Tensor]:
    """Masks of a session that is edited between frames.

    Objects are added and removed, and frames are corrected or prompted again.
    """
    state = predictor.init_state(frames())
    for i in range(2):
        predictor.add_new_points_or_box(state, 0, i, points=[[10.0 + 20 * i, 30.0]], labels=[1])
    for frame in (5, 6):  # more prompted frames than the initial capacity of a table
        predictor.add_new_points_or_box(state, frame, 1, points=[[40.0, 30.0]], labels=[1])
    for frame, _, masks in predictor.propagate_in_video(state):
        yield masks
        if frame == 1:
            predictor.add_new_points_or_box(state, 1, "late", box=[10.0, 15.0, 40.0, 45.0])
        if frame == 2:
            predictor.add_new_points_or_box(state, 2, 0, points=[[30.0, 30.0]], labels=[0])
        if frame == 3:
            for i in range(10, 12):
                predictor.add_new_points_or_box(state, 3, i, points=[[50.0, 20.0 + i]], labels=[1])
        if frame == 4:
            predictor.remove_object(state, 0)
    for _, _, masks in predictor.propagate_in_video(state, start_frame_idx=3, reverse=True):
        yield masks
