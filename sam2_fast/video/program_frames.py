"""Frames that a function of the program loads, in place of the official `load_video_frames`."""

from __future__ import annotations

from typing import Any

import torch

from sam2_fast.video.frames import AssignedFrames

load_video_frames: Any = None
"""A function with the arguments and results of the official one, or None: we load the frames."""


def frames_of_program(
    video_path: Any,
    image_size: int,
    offload_video_to_cpu: bool,
    async_loading_frames: bool,
    device: torch.device,
) -> AssignedFrames | None:
    """The frames of a video, if the program has replaced `load_video_frames`; else None."""
    if load_video_frames is None:
        return None
    images, height, width = load_video_frames(
        video_path=video_path,
        image_size=image_size,
        offload_video_to_cpu=offload_video_to_cpu,
        async_loading_frames=async_loading_frames,
        compute_device=device,
    )
    return AssignedFrames(images, height, width)
