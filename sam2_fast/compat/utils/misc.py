"""`sam2.utils.misc`: connected components, boxes, and the frames of a video as one tensor."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from sam2_fast.io.images import load_image
from sam2_fast.io.limits import MAX_FRAMES
from sam2_fast.io.sequences import frame_files
from sam2_fast.io.transforms import PIXEL_MEAN, PIXEL_STD, resize_frame
from sam2_fast.io.video import open_video
from sam2_fast.official.predictor_steps import concat_points as concat_points
from sam2_fast.ops.connected_components import connected_components


def get_sdpa_settings() -> tuple[bool, bool, bool]:
    """(old GPU, use flash attention, use the math kernel), as the official code chooses them."""
    if not torch.cuda.is_available():
        return True, False, True
    major = torch.cuda.get_device_properties(0).major
    return major < 7, major >= 8, major < 8


def get_connected_components(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Labels and areas of 8-connected components, int32 of the same shape as the mask.

    mask: [N, 1, H, W] bool or numeric; non-zero is foreground.
    """
    return connected_components(mask != 0)


def fill_holes_in_mask_scores(mask: Tensor, max_area: int) -> Tensor:
    """The mask logits with holes of at most `max_area` pixels set to 0.1.

    mask: [N, 1, H, W] logits. Raises ValueError if max_area is not positive.
    """
    if max_area <= 0:
        raise ValueError(f"max_area: expected a positive number of pixels, got {max_area}")
    labels, areas = get_connected_components(mask <= 0)
    return torch.where((labels > 0) & (areas <= max_area), 0.1, mask)


def mask_to_box(masks: Tensor) -> Tensor:
    """Boxes [B, 1, 4] int32 as (x0, y0, x1, y1), last pixel included.

    masks: [B, 1, H, W] bool. The box of an empty mask is (W, H, -1, -1).
    """
    height, width = masks.shape[-2:]
    x = torch.arange(width, device=masks.device, dtype=torch.int32)
    y = torch.arange(height, device=masks.device, dtype=torch.int32)
    columns, rows = masks.any(-2), masks.any(-1)
    x0, x1 = torch.where(columns, x, width).amin(-1), torch.where(columns, x, -1).amax(-1)
    y0, y1 = torch.where(rows, y, height).amin(-1), torch.where(rows, y, -1).amax(-1)
    return torch.stack([x0, y0, x1, y1], dim=-1)


def _load_img_as_tensor(
    img_path: str | os.PathLike[str], image_size: int
) -> tuple[Tensor, int, int]:
    """An image [3, image_size, image_size], float64 in [0, 1], and its height and width before."""
    return _frame_as_tensor(load_image(img_path), image_size)


class AsyncVideoFrameLoader:
    """Frames [3, S, S], normalised, decoded when they are read and then kept in memory.

    video_height, video_width: in pixels.
    The official class decodes ahead in a thread; this one decodes only frames that are read.
    """

    def __init__(
        self,
        img_paths: Any,
        image_size: int,
        offload_video_to_cpu: bool,
        img_mean: Tensor,
        img_std: Tensor,
        compute_device: torch.device | str,
    ) -> None:
        """img_paths: image files in order, or a video as `open_video` accepts it."""
        self.img_paths = img_paths
        self.image_size = image_size
        self.offload_video_to_cpu = offload_video_to_cpu
        self.img_mean, self.img_std = img_mean, img_std
        self.compute_device = compute_device
        self._frames: Any = img_paths
        if not isinstance(img_paths, (list, tuple)):
            self._frames = open_video(img_paths)
        self.images: list[Tensor | None] = [None] * len(self._frames)
        self.video_height: int | None = None
        self.video_width: int | None = None
        self[0]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        image = self.images[index]
        if image is None:
            frame = self._frames[index]
            if isinstance(frame, str | os.PathLike):
                image, height, width = _load_img_as_tensor(frame, self.image_size)
            else:
                image, height, width = _frame_as_tensor(frame, self.image_size)
            self.video_height, self.video_width = height, width
            image = (image - self.img_mean) / self.img_std
            if not self.offload_video_to_cpu:
                image = image.to(self.compute_device)
            self.images[index] = image
        return image


def load_video_frames(
    video_path: Any,
    image_size: int,
    offload_video_to_cpu: bool,
    img_mean: Sequence[float] = PIXEL_MEAN,
    img_std: Sequence[float] = PIXEL_STD,
    async_loading_frames: bool = False,
    compute_device: torch.device | str | None = None,
) -> tuple[Any, int, int]:
    """All frames of a video, and its height and width in pixels.

    The frames are one tensor [N, 3, image_size, image_size] float32, normalised. A frame takes 12
    MB at 1024 pixels; `SAM2VideoPredictor.init_state` reads frames on demand instead.
    async_loading_frames: return a loader instead of the tensor; for folders only.
    compute_device: None selects CUDA if available, else the CPU.
    """
    arguments = {
        "video_path": video_path,
        "image_size": image_size,
        "offload_video_to_cpu": offload_video_to_cpu,
        "img_mean": img_mean,
        "img_std": img_std,
        "compute_device": compute_device,
    }
    if isinstance(video_path, str | os.PathLike) and os.path.isdir(video_path):
        return load_video_frames_from_jpg_images(
            **arguments, async_loading_frames=async_loading_frames
        )
    return load_video_frames_from_video_file(**arguments)


def load_video_frames_from_jpg_images(
    video_path: str | os.PathLike[str],
    image_size: int,
    offload_video_to_cpu: bool,
    img_mean: Sequence[float] = PIXEL_MEAN,
    img_std: Sequence[float] = PIXEL_STD,
    async_loading_frames: bool = False,
    compute_device: torch.device | str | None = None,
) -> tuple[Any, int, int]:
    """`load_video_frames` for a folder of numbered images; NotADirectoryError for another path."""
    if not os.path.isdir(video_path):
        raise NotADirectoryError(
            f"video_path: expected a folder of numbered images, got {video_path}"
        )
    paths = [str(path) for path in frame_files(Path(video_path), MAX_FRAMES)]
    mean, std, device = _constants(img_mean, img_std, compute_device)
    if async_loading_frames:
        loader = AsyncVideoFrameLoader(paths, image_size, offload_video_to_cpu, mean, std, device)
        return loader, loader.video_height or 0, loader.video_width or 0
    images = torch.zeros(len(paths), 3, image_size, image_size)
    height = width = 0
    for i, path in enumerate(tqdm(paths, desc="frame loading (JPEG)")):
        images[i], height, width = _load_img_as_tensor(path, image_size)
    return _normalised(images, mean, std, None if offload_video_to_cpu else device), height, width


def load_video_frames_from_video_file(
    video_path: Any,
    image_size: int,
    offload_video_to_cpu: bool,
    img_mean: Sequence[float] = PIXEL_MEAN,
    img_std: Sequence[float] = PIXEL_STD,
    compute_device: torch.device | str | None = None,
) -> tuple[Tensor, int, int]:
    """`load_video_frames` for a video file, or for another video as `open_video` accepts it.

    Frames are resized like those of an image folder.
    """
    mean, std, device = _constants(img_mean, img_std, compute_device)
    with open_video(video_path) as video:
        frames = [_frame_as_tensor(video[i], image_size)[0].float() for i in range(len(video))]
        height, width = video.height, video.width
    images = torch.stack(frames)
    return _normalised(images, mean, std, None if offload_video_to_cpu else device), height, width


def _frame_as_tensor(pixels: Any, image_size: int) -> tuple[Tensor, int, int]:
    image = resize_frame(pixels, image_size).permute(2, 0, 1).double() / 255.0
    return image, pixels.shape[0], pixels.shape[1]


def _constants(
    img_mean: Sequence[float], img_std: Sequence[float], compute_device: torch.device | str | None
) -> tuple[Tensor, Tensor, torch.device]:
    """Mean and deviation of a pixel, [3, 1, 1], and the device."""
    mean, std = (
        torch.tensor([*x], dtype=torch.float32)[:, None, None] for x in (img_mean, img_std)
    )
    device = compute_device or ("cuda" if torch.cuda.is_available() else "cpu")
    return mean, std, torch.device(device)


def _normalised(images: Tensor, mean: Tensor, std: Tensor, device: torch.device | None) -> Tensor:
    """images [N, 3, S, S], changed; device: None: their own."""
    if device is not None:
        images, mean, std = images.to(device), mean.to(device), std.to(device)
    return images.sub_(mean).div_(std)
