"""Pictures to model input: resize to S x S pixels, scale to [0, 1], normalise by channel.

Two kernels, as upstream: an image is resized as float (bilinear, antialiased), a video frame as
uint8 (Pillow's bicubic). The work is done by `sam2_fast.ops.preprocess`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sam2_fast.ops.core.native import no_triton
from sam2_fast.ops.core.transfer import upload
from sam2_fast.ops.preprocess import (
    full_scale,
    normalize,
    preprocess_frame,
    preprocess_images,
    resize_bicubic,
)

PIXEL_MEAN = (0.485, 0.456, 0.406)
PIXEL_STD = (0.229, 0.224, 0.225)

Pixels = npt.NDArray[np.uint8] | npt.NDArray[np.float32]


def resize_image(image: Pixels, size: int, device: torch.device | str = "cpu") -> Tensor:
    """One image to model input: [H, W, 3] uint8, or float32 in [0, 1] -> [3, size, size] float32 on
    `device`, normalised.

    Bytes travel as they are and are resized on the device, where it has a kernel for that.
    """
    _check_hwc(image, "image")
    place = device if image.dtype == np.uint8 and _resizes(device) else "cpu"
    return upload(resize_images(_as_tensor(image).permute(2, 0, 1)[None], size, place)[0], device)


def resize_images(
    images: Tensor | Sequence[Tensor], size: int, device: torch.device | str | None = None
) -> Tensor:
    """Images to model input: [B, 3, H, W], or a sequence of [3, H, W] of any sizes -> [B, 3, size,
    size] float32, normalised.

    Each is uint8, or floating point in [0, 1]. The work is done on `device` (default: where the
    images are).
    """
    if size <= 0:
        raise ValueError(f"size: expected a positive number of pixels, got {size}")
    if isinstance(images, Tensor):
        return _resize_batch(images, size, device)
    if not images:
        raise ValueError("images: expected at least one image, got none")
    return torch.cat([_resize_batch(image[None], size, device) for image in images])


def resize_frame(frame: npt.NDArray[np.uint8], size: int) -> Tensor:
    """One video frame: [H, W, 3] uint8 -> [size, size, 3] uint8 on the CPU, with Pillow's bicubic
    kernel.
    """
    return resize_bicubic(_frame_tensor(frame, size), size)


def frame_input(
    frame: npt.NDArray[np.uint8], size: int, device: torch.device | str = "cpu"
) -> Tensor:
    """One video frame to model input: [H, W, 3] uint8 -> [3, size, size] float32 on `device`,
    resized and normalised there.

    Where the device has no kernel for that, the resized bytes travel. The numbers are those of
    `normalize_frame(resize_frame(frame, size), device)`.
    """
    if _resizes(device):
        return preprocess_frame(
            upload(_frame_tensor(frame, size), device), size, PIXEL_MEAN, PIXEL_STD
        )
    return normalize_frame(resize_frame(frame, size), device)


def normalize_frame(
    frame: Tensor, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """A resized frame to model input: [S, S, 3] or [B, S, S, 3] uint8 -> [3, S, S] or [B, 3, S, S]
    `dtype` on `device`.

    The bytes travel, not the floats. Arithmetic is float32: x / 255, less the mean, over the
    deviation; each is a true division, so the numbers are those of the official code on every
    device.
    """
    if frame.dtype != torch.uint8 or frame.ndim not in (3, 4) or frame.shape[-1] != 3:
        raise ValueError(
            f"frame: expected uint8 [S, S, 3] or [B, S, S, 3], got {frame.dtype} {[*frame.shape]}"
        )
    pixels = upload(frame, device) if device is not None else frame
    planes = pixels.movedim(-1, -3).to(
        torch.float32, memory_format=torch.contiguous_format, copy=True
    )
    return normalize(planes.div_(full_scale(planes.device)), PIXEL_MEAN, PIXEL_STD).to(dtype)


def _resize_batch(images: Tensor, size: int, device: torch.device | str | None) -> Tensor:
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
        raise ValueError(
            f"images: expected [B, 3, H, W] with at least one pixel, got {[*images.shape]}"
        )
    placed = images if device is None else upload(images, device)
    if not (placed.dtype == torch.uint8 or placed.is_floating_point()):
        raise ValueError(f"images: expected uint8 or floating point in [0, 1], got {images.dtype}")
    return preprocess_images(placed.permute(0, 2, 3, 1), size, PIXEL_MEAN, PIXEL_STD)


def _resizes(device: torch.device | str) -> bool:
    """Whether bytes are resized on `device` itself."""
    kind = torch.device(device).type
    return kind == "cpu" or (kind == "cuda" and no_triton() is None)


def _frame_tensor(frame: npt.NDArray[np.uint8], size: int) -> Tensor:
    _check_hwc(frame, "frame")
    if frame.dtype != np.uint8:
        raise ValueError(f"frame: expected uint8, got {frame.dtype}")
    if size <= 0:
        raise ValueError(f"size: expected a positive number of pixels, got {size}")
    return _as_tensor(frame)


def _as_tensor(picture: Pixels) -> Tensor:
    """The same memory where torch can have it: neither read-only nor with negative strides."""
    shared = picture.flags.writeable and min(picture.strides) >= 0
    return torch.from_numpy(picture if shared else picture.copy())


def _check_hwc(picture: Pixels, name: str) -> None:
    if picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
        raise ValueError(
            f"{name}: expected [H, W, 3] with at least one pixel, got {[*picture.shape]}"
        )
