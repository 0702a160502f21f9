"""Convert pictures to model input: resize to S x S pixels, scale to [0, 1], normalise per channel.

As in the official code, images and video frames use different filters: an image is resized in
floating point (bilinear, antialiased), a frame as uint8 (Pillow's bicubic). The computation is in
`sam2_fast.ops.preprocess`.
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
    """One image as normalised model input [3, size, size] float32 on `device`.

    image: [H, W, 3] uint8, or float32 in [0, 1].
    A uint8 image is copied to the device and resized there, if the device has a kernel for that.
    """
    planes = as_planes(image)[None]
    resize_on = device if image.dtype == np.uint8 and _can_resize(device) else "cpu"
    return upload(resize_images(planes, size, resize_on)[0], device)


def resize_images(
    images: Tensor | Sequence[Tensor],
    size: int,
    device: torch.device | str | None = None,
    mean: Sequence[float] = PIXEL_MEAN,
    std: Sequence[float] = PIXEL_STD,
) -> Tensor:
    """Images as normalised model input [B, 3, size, size] float32.

    images: [B, 3, H, W], or a sequence of [3, H, W] of any sizes; uint8, or floating point in [0,
        1].
    device: where the images are resized; None: on their own device.
    mean, std: of the channels, for the normalisation.
    """
    if size <= 0:
        raise ValueError(f"size: expected a positive number of pixels, got {size}")
    if isinstance(images, Tensor):
        return _resize_batch(images, size, device, mean, std)
    if not images:
        raise ValueError("images: expected at least one image, got none")
    return torch.cat([_resize_batch(image[None], size, device, mean, std) for image in images])


def resize_frame(frame: npt.NDArray[np.uint8], size: int) -> Tensor:
    """One video frame [H, W, 3] uint8 as [size, size, 3] uint8 on the CPU (Pillow's bicubic)."""
    return resize_bicubic(_frame_tensor(frame, size), size)


def frame_input(
    frame: npt.NDArray[np.uint8], size: int, device: torch.device | str = "cpu"
) -> Tensor:
    """One video frame [H, W, 3] uint8 as model input [3, size, size] float32 on `device`.

    The frame is resized and normalised on the device. If the device has no kernel for that, the
    frame is resized on the CPU and the resized bytes are copied. The result equals
    `normalize_frame(resize_frame(frame, size), device)`.
    """
    if _can_resize(device):
        return preprocess_frame(
            upload(_frame_tensor(frame, size), device), size, PIXEL_MEAN, PIXEL_STD
        )
    return normalize_frame(resize_frame(frame, size), device)


def normalize_frame(
    frame: Tensor, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """A resized frame as model input [3, S, S] or [B, 3, S, S] of `dtype` on `device`.

    frame: [S, S, 3] or [B, S, S, 3] uint8; copied to the device as bytes.
    The arithmetic is float32: x / 255, minus the mean, divided by the deviation. Each division is a
    true one, so the results equal those of the official code on every device.
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


def _resize_batch(
    images: Tensor,
    size: int,
    device: torch.device | str | None,
    mean: Sequence[float],
    std: Sequence[float],
) -> Tensor:
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
        raise ValueError(
            f"images: expected [B, 3, H, W] with at least one pixel, got {[*images.shape]}"
        )
    pixels = images if device is None else upload(images, device)
    if not (pixels.dtype == torch.uint8 or pixels.is_floating_point()):
        raise ValueError(f"images: expected uint8 or floating point in [0, 1], got {images.dtype}")
    return preprocess_images(pixels.permute(0, 2, 3, 1), size, tuple(mean), tuple(std))


def _can_resize(device: torch.device | str) -> bool:
    """Whether uint8 images and frames are resized on `device` itself."""
    kind = torch.device(device).type
    return kind == "cpu" or (kind == "cuda" and no_triton() is None)


def _frame_tensor(frame: npt.NDArray[np.uint8], size: int) -> Tensor:
    _check_hwc(frame, "frame")
    if frame.dtype != np.uint8:
        raise ValueError(f"frame: expected uint8, got {frame.dtype}")
    if size <= 0:
        raise ValueError(f"size: expected a positive number of pixels, got {size}")
    return _as_tensor(frame)


def as_planes(image: Pixels) -> Tensor:
    """An image [H, W, 3] uint8 or float32 as a tensor [3, H, W] of the same dtype."""
    _check_hwc(image, "image")
    return _as_tensor(image).permute(2, 0, 1)


def _as_tensor(picture: Pixels) -> Tensor:
    """The picture as a tensor; copied only if it is read-only or has negative strides."""
    shared = picture.flags.writeable and min(picture.strides) >= 0
    return torch.from_numpy(picture if shared else picture.copy())


def _check_hwc(picture: Pixels, name: str) -> None:
    if picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
        raise ValueError(
            f"{name}: expected [H, W, 3] with at least one pixel, got {[*picture.shape]}"
        )
