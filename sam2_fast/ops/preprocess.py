"""Model input from pictures in one pass: resize to S x S, scale to [0, 1], normalise by channel."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from PIL import __version__ as pillow_version
from torch import Tensor

from sam2_fast.ops.core import tracing
from sam2_fast.ops.core.native import native
from sam2_fast.ops.core.op import Backend, Op
from sam2_fast.ops.core.requirements import fits, on_one, plain
from sam2_fast.proving.rules import Rule, bits, first_rows

__all__ = ["preprocess_frame", "preprocess_images", "resize_bicubic"]

_MAX_SIDE = 2**24  # in pixels, of the kernels


def preprocess_images(
    images: Tensor, size: int, mean: Sequence[float], std: Sequence[float], *, backend: str = "auto"
) -> Tensor:
    """Resize with antialiased bilinear interpolation in float32, then (x - mean) / std.

    The interpolation has align_corners=False.
    images: [B, H, W, 3] of any strides, uint8 (divided by 255 first) or floating point in [0, 1].
    size: S, pixels of a side.
    mean, std: of each channel, of values in [0, 1].
    backend: "auto", "triton" or "cpu" (both for uint8 only), or "torch".
    Returns [B, 3, S, S] float32 on the device of `images`. Raises ValueError for shapes that do not
    fit, BackendError if the named backend cannot run. Source: official
    `SAM2Transforms.__call__`.
    """
    _check(images, 4, "images", "[B, H, W, 3]", size, mean, std)
    if not images.dtype.is_floating_point and images.dtype != torch.uint8:
        raise ValueError(f"images: expected uint8 or floating point in [0, 1], got {images.dtype}")
    return _IMAGES(backend, images, size, list(mean), list(std))


def preprocess_frame(
    frame: Tensor, size: int, mean: Sequence[float], std: Sequence[float], *, backend: str = "auto"
) -> Tensor:
    """Resize a frame with `resize_bicubic`, then compute (x / 255 - mean) / std in float32.

    frame: [H, W, 3] uint8 of any strides. Other arguments and errors as in `preprocess_images`.
    Returns [3, S, S] float32 on the device of `frame`; results of all backends are bitwise equal.
    Source: official `load_video_frames`.
    """
    _check(frame, 3, "frame", "[H, W, 3]", size, mean, std)
    _check_bytes(frame)
    return _FRAME(backend, frame, size, list(mean), list(std))


def resize_bicubic(frame: Tensor, size: int, *, backend: str = "auto") -> Tensor:
    """Resize with Pillow's bicubic filter.

    It uses fixed-point numbers, one axis after the other, and rounds to bytes after each.
    frame: [H, W, 3] uint8 of any strides; size: S, pixels of a side; backend: "auto", "triton",
    "cpu" or "torch" (Pillow). Returns [S, S, 3] uint8 on the device of `frame`; results of all
    backends are bitwise equal to that of the installed Pillow. Errors as in `preprocess_images`.
    """
    _check(frame, 3, "frame", "[H, W, 3]", size)
    _check_bytes(frame)
    return _BICUBIC(backend, frame, size)


def _check(
    pictures: Tensor,
    ndim: int,
    name: str,
    shape: str,
    size: int,
    mean: Sequence[float] = (0, 0, 0),
    std: Sequence[float] = (1, 1, 1),
) -> None:
    if pictures.ndim != ndim or pictures.shape[-1] != 3 or 0 in pictures.shape[-3:]:
        raise ValueError(
            f"{name}: expected {shape} with at least one pixel, got {[*pictures.shape]}"
        )
    if size <= 0:
        raise ValueError(f"size: expected a positive number of pixels, got {size}")
    if len(mean) != 3 or len(std) != 3:
        raise ValueError(f"mean, std: expected three numbers each, got {len(mean)} and {len(std)}")


def _check_bytes(frame: Tensor) -> None:
    if frame.dtype != torch.uint8:
        raise ValueError(f"frame: expected uint8, got {frame.dtype}")


def preprocess_images_reference(
    images: Tensor, size: int, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """The definition, in torch."""
    planes = images.permute(0, 3, 1, 2)
    if images.dtype == torch.uint8:
        scaled = planes.contiguous().to(torch.float32).div_(full_scale(images.device))
    else:
        scaled = planes.to(torch.float32)
    if scaled.shape[2:] != (size, size):
        scaled = F.interpolate(
            scaled, (size, size), mode="bilinear", align_corners=False, antialias=True
        )
    elif images.dtype == torch.float32:
        scaled = scaled.clone()  # normalize() works in place
    return normalize(scaled, mean, std)


def resize_bicubic_reference(frame: Tensor, size: int) -> Tensor:
    """The definition: Pillow."""
    pixels = Image.fromarray(np.ascontiguousarray(frame.cpu().numpy()))
    return torch.from_numpy(np.array(pixels.resize((size, size), Image.Resampling.BICUBIC))).to(
        frame.device
    )


def preprocess_frame_reference(
    frame: Tensor, size: int, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """The definition, in Pillow and torch."""
    planes = (
        resize_bicubic_reference(frame, size)
        .permute(2, 0, 1)
        .to(torch.float32, memory_format=torch.contiguous_format)
    )
    return normalize(planes.div_(full_scale(frame.device)), mean, std)


def normalize(planes: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(planes - mean) / std, in place. planes: [..., 3, H, W] float32.

    It is a true division on every device, not a product with the reciprocal.
    """
    means, deviations = (
        _constant(tuple(values), planes.device)[:, None, None] for values in (mean, std)
    )
    return planes.sub_(means).div_(deviations)


def full_scale(device: torch.device) -> Tensor:
    """255 as a tensor on the device.

    With a Python number as divisor, CUDA multiplies by the reciprocal, which rounds differently.
    """
    return _constant((255.0,), device)[0]


def _constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """`values` as float32 on the device, cached.

    Not cached while operations are recorded: a tensor created under a recorder or a FakeTensorMode
    is valid only there.
    """
    if tracing.recording_reason() is not None:
        return torch.tensor(values, dtype=torch.float32, device=device)
    return _cached_constant(values, device)


@lru_cache(maxsize=16)
def _cached_constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=torch.float32, device=device)


def _run(
    pictures: Tensor,
    bicubic: bool,
    mean: Sequence[float],
    std: Sequence[float],
    out: Tensor,
    isa: str | None,
) -> Tensor:
    module = native()
    assert module is not None
    height, width = pictures.shape[1:3]
    columns_first = bicubic and columns_before_rows(height, width, out.shape[2])
    pictures = pictures.detach()
    module.preprocess(
        pictures.contiguous() if columns_first else pictures,
        bicubic,
        columns_first,
        list(mean),
        list(std),
        out,
        torch.get_num_threads(),
        isa or module.cpu_isa(),
    )
    return out


def columns_before_rows(
    height: int, width: int, size: int, pillow: int = int(pillow_version.split(".")[0])
) -> bool:
    """Whether Pillow resizes columns first: from version 13 on, if the height shrinks by much more.

    pillow: the major version.
    """
    return pillow >= 13 and height - size > 2 * max(width - size, 0)


def _native_images(
    images: Tensor, size: int, mean: Sequence[float], std: Sequence[float], isa: str | None = None
) -> Tensor:
    """Run the CPU kernel. isa: an older instruction set than this CPU's, for tests."""
    return _run(
        images, False, mean, std, torch.empty(len(images), 3, size, size, device="cpu"), isa
    )


def _native_frame(
    frame: Tensor, size: int, mean: Sequence[float], std: Sequence[float], isa: str | None = None
) -> Tensor:
    return _run(frame[None], True, mean, std, torch.empty(1, 3, size, size, device="cpu"), isa)[0]


def _native_bicubic(frame: Tensor, size: int, isa: str | None = None) -> Tensor:
    return _run(
        frame[None],
        True,
        (0, 0, 0),
        (1, 1, 1),
        torch.empty(1, size, size, 3, dtype=torch.uint8, device="cpu"),
        isa,
    )[0]


def _resampled(
    pictures: Tensor,
    size: int,
    bicubic: bool,
    mean: Sequence[float] | None = None,
    std: Sequence[float] = (),
) -> Tensor:
    from sam2_fast.kernels import preprocess as kernels

    height, width = pictures.shape[1:3]
    columns_first = bicubic and columns_before_rows(height, width, size)
    return kernels.resample(pictures.detach(), size, bicubic, columns_first, mean, std)


def _triton_images(
    images: Tensor, size: int, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    return _resampled(images, size, False, mean, std)


def _triton_frame(frame: Tensor, size: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    return _resampled(frame[None], size, True, mean, std)[0]


def _triton_bicubic(frame: Tensor, size: int) -> Tensor:
    return _resampled(frame[None], size, True)[0]


def _refuses(pictures: Tensor, size: int, *_: object) -> str | None:
    if pictures.dtype != torch.uint8:
        return f"the input is {pictures.dtype}; supported: uint8"
    height, width = pictures.shape[-3:-1]
    if max(size, height, width) > _MAX_SIDE:
        return f"sides are {height}, {width} and {size} pixels; supported: up to 2^24"
    return None


def _backends(
    run_triton: Callable[..., Tensor], run_native: Callable[..., Tensor]
) -> tuple[Backend, ...]:
    return (
        Backend(
            "triton", run_triton, (on_one("cuda"), plain, fits(_refuses)), kernels=("resample",)
        ),
        Backend("cpu", run_native, (on_one("cpu"), plain, fits(_refuses))),
    )


def _images_result(images: Tensor, size: int, mean: list[float], std: list[float]) -> Tensor:
    return images.new_empty(images.shape[0], 3, size, size, dtype=torch.float32)


def _frame_result(frame: Tensor, size: int, mean: list[float], std: list[float]) -> Tensor:
    return frame.new_empty(3, size, size, dtype=torch.float32)


def _bicubic_result(frame: Tensor, size: int) -> Tensor:
    return frame.new_empty(size, size, 3)


def _configuration(picture: Tensor, size: int, *_: object) -> Hashable:
    height, width = picture.shape[-3:-1]
    return bits(height * width), size, height > size, width > size, picture.dtype


def _exact_frame(frame: Tensor, size: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    return _normalized(resize_bicubic_reference(frame, size).permute(2, 0, 1), mean, std)


def _exact_images(images: Tensor, size: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    planes = images.permute(0, 3, 1, 2).contiguous().double()
    if planes.shape[2:] != (size, size):
        planes = F.interpolate(planes, (size, size), mode="bilinear", antialias=True)
    scale = 1.0 if images.dtype == torch.uint8 else 255.0
    return _normalized(planes * scale, mean, std)


def _normalized(planes: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(planes / 255 - mean) / std in float64, with mean and std rounded to float32."""
    means, deviations = (
        torch.tensor(list(values), dtype=torch.float32, device=planes.device).double()
        for values in (mean, std)
    )
    return (planes.double() / 255 - means[:, None, None]) / deviations[:, None, None]


def _is_bytes_on_cpu(images: Tensor, *_: object) -> bool:
    return images.device.type == "cpu" and images.dtype == torch.uint8


_PILLOW = (
    "its definition runs in Pillow, which reads the recorded values and cannot be recorded itself"
)
_IMAGES = Op(
    "preprocess_images",
    schema="(Tensor images, int size, float[] mean, float[] std) -> Tensor",
    reference=preprocess_images_reference,
    result=_images_result,
    backends=_backends(_triton_images, _native_images),
    takes=_is_bytes_on_cpu,
    rule=Rule(_configuration, first_rows(1), exact=_exact_images),
)
_FRAME = Op(
    "preprocess_frame",
    schema="(Tensor frame, int size, float[] mean, float[] std) -> Tensor",
    reference=preprocess_frame_reference,
    result=_frame_result,
    backends=_backends(_triton_frame, _native_frame),
    fixed_by_values=_PILLOW,
    rule=Rule(_configuration, exact=_exact_frame),
)
_BICUBIC = Op(
    "resize_bicubic",
    schema="(Tensor frame, int size) -> Tensor",
    reference=resize_bicubic_reference,
    result=_bicubic_result,
    backends=_backends(_triton_bicubic, _native_bicubic),
    fixed_by_values=_PILLOW,
    rule=Rule(_configuration),
)
