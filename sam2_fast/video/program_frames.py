"""Frames that a function of the program loads, in place of the official `load_video_frames`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

load_video_frames: Any = None
"""A function with the arguments and results of the official one, or None: we load the frames."""


class LoadedFrames:
    """Normalised frames of a function of the program.

    images: [3, S, S] floating point by number: a tensor, a list, or an object that loads them.
    """

    def __init__(self, images: Any, height: int, width: int) -> None:
        self.images = images
        self.num_frames = len(images)
        self.height = height
        self.width = width

    def __getitem__(self, index: int) -> Tensor:
        image: Tensor = self.images[index]
        return image

    def read_ahead(self, index: int) -> None:
        """Does nothing: the object decides when frames are read."""


def frames_of_program(
    video_path: Any,
    image_size: int,
    offload_video_to_cpu: bool,
    async_loading_frames: bool,
    device: torch.device,
) -> LoadedFrames | None:
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
    return LoadedFrames(images, height, width)
