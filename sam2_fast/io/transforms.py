"""Pictures to model input: resize to S x S pixels, scale to [0, 1], normalise by channel.

Two kernels, as upstream: an image is resized as float (bilinear, antialiased), a video frame as uint8 (Pillow's bicubic).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

PIXEL_MEAN = (0.485, 0.456, 0.406)
PIXEL_STD = (0.229, 0.224, 0.225)

Pixels = npt.NDArray[np.uint8] | npt.NDArray[np.float32]


def resize_image(image: Pixels, size: int) -> Tensor:
    """One image to model input on the CPU: [H, W, 3] uint8, or float32 in [0, 1] -> [3, size, size] float32, normalised."""
    _check_hwc(image, "image")
    chw = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    return resize_images(chw[None], size)[0]


def resize_images(images: Tensor | Sequence[Tensor], size: int, device: torch.device | str | None = None) -> Tensor:
    """Images to model input: [B, 3, H, W], or a sequence of [3, H, W] of any sizes -> [B, 3, size, size] float32, normalised.

    Each is uint8, or floating point in [0, 1]. The work is done on `device` (default: where the images are).
    """
    if size <= 0:
        raise ValueError(f"size: expected a positive number of pixels, got {size}")
    if isinstance(images, Tensor):
        return _resize_batch(images, size, device)
    if not images:
        raise ValueError("images: expected at least one image, got none")
    return torch.cat([_resize_batch(image[None], size, device) for image in images])


def resize_frame(frame: npt.NDArray[np.uint8], size: int) -> Tensor:
    """One video frame: [H, W, 3] uint8 -> [size, size, 3] uint8 on the CPU, with Pillow's bicubic kernel."""
    _check_hwc(frame, "frame")
    if frame.dtype != np.uint8:
        raise ValueError(f"frame: expected uint8, got {frame.dtype}")
    if size <= 0:
        raise ValueError(f"size: expected a positive number of pixels, got {size}")
    resized = Image.fromarray(np.ascontiguousarray(frame)).resize((size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized))


def normalize_frame(frame: Tensor, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """A resized frame to model input: [S, S, 3] or [B, S, S, 3] uint8 -> [3, S, S] or [B, 3, S, S] `dtype` on `device`.

    The bytes travel, not the floats. Arithmetic is float32: x / 255, less the mean, over the deviation; each is a true
    division, so the numbers are those of the official code on every device.
    """
    if frame.dtype != torch.uint8 or frame.ndim not in (3, 4) or frame.shape[-1] != 3:
        raise ValueError(f"frame: expected uint8 [S, S, 3] or [B, S, S, 3], got {frame.dtype} {[*frame.shape]}")
    pixels = frame.to(device) if device is not None else frame
    planes = pixels.movedim(-1, -3).to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    return _normalize(planes.div_(_full_scale(planes.device))).to(dtype)


def _resize_batch(images: Tensor, size: int, device: torch.device | str | None) -> Tensor:
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
        raise ValueError(f"images: expected [B, 3, H, W] with at least one pixel, got {[*images.shape]}")
    placed = images if device is None else images.to(device)
    if placed.dtype == torch.uint8:
        scaled = placed.contiguous().to(torch.float32).div_(_full_scale(placed.device))
    elif placed.is_floating_point():
        scaled = placed.to(torch.float32)
    else:
        raise ValueError(f"images: expected uint8 or floating point in [0, 1], got {images.dtype}")
    if scaled.shape[2:] != (size, size):
        scaled = F.interpolate(scaled, (size, size), mode="bilinear", align_corners=False, antialias=True)
    elif scaled is images:
        scaled = scaled.clone()
    return _normalize(scaled)


def _normalize(planes: Tensor) -> Tensor:
    mean, std = _statistics(planes.device)
    return planes.sub_(mean).div_(std)


@lru_cache(maxsize=16)
def _statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False):
        mean, std = (torch.tensor(values, dtype=torch.float32, device=device)[:, None, None] for values in (PIXEL_MEAN, PIXEL_STD))
    return mean, std


@lru_cache(maxsize=16)
def _full_scale(device: torch.device) -> Tensor:
    """255 on the device: CUDA multiplies by the reciprocal where the divisor is a Python number, and rounds differently."""
    with torch.inference_mode(False):
        return torch.full((), 255.0, dtype=torch.float32, device=device)


def _check_hwc(picture: Pixels, name: str) -> None:
    if picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
        raise ValueError(f"{name}: expected [H, W, 3] with at least one pixel, got {[*picture.shape]}")
