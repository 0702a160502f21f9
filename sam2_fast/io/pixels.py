"""Arrays of pixels of any layout, byte order and number format as RGB."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

RGB8 = npt.NDArray[np.uint8]


def rgb_from_array(array: npt.NDArray[Any], label: str) -> RGB8 | npt.NDArray[np.float32]:
    """[H, W, 3] contiguous pixels, uint8, or float32 in [0, 1], in native byte order.

    array: [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] (alpha is dropped), of any strides and byte
        order; uint8, uint16 with a full scale of 65535, or floating point in [0, 1].
    label: the name of the array in error messages.
    Raises ValueError for other shapes, number formats and ranges.
    """
    rgb = _as_channels(array, label)
    kind, size = rgb.dtype.kind, rgb.dtype.itemsize
    if kind == "u" and size == 1:
        return np.ascontiguousarray(rgb, dtype=np.uint8)
    if kind == "u" and size == 2:
        return ((rgb.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if kind == "f":
        return _unit_floats(rgb, label)
    raise ValueError(
        f"{label}: expected uint8, uint16 or floating point in [0, 1], got {array.dtype}"
        f"{_dtype_advice(rgb)}"
    )


def _as_channels(array: npt.NDArray[Any], label: str) -> npt.NDArray[Any]:
    """A view [H, W, 3] of the array."""
    shape = [*array.shape]
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[2] not in (1, 3, 4):
        raise ValueError(
            f"{label}: expected a numpy array [H, W, 3], got {shape}; channels first? use "
            f".transpose(1, 2, 0)"
        )
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ValueError(
            f"{label}: expected [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], got {shape}"
        )
    if 0 in shape:
        raise ValueError(f"{label}: expected at least one pixel, got {shape}")
    channels = array[:, :, None] if array.ndim == 2 else array[:, :, :3]
    if channels.shape[2] == 1:
        return np.broadcast_to(channels, (*channels.shape[:2], 3))
    return channels


def _dtype_advice(rgb: npt.NDArray[Any]) -> str:
    """How to convert without wrapping a value around; empty if the pixels are not real numbers."""
    if rgb.dtype.kind == "b":
        return "; for black and white use array.astype(np.uint8) * 255"
    if rgb.dtype.kind not in "iu":
        return ""
    low, high = int(rgb.min()), int(rgb.max())
    if low < 0:
        return f" in [{low}, {high}]; shift and scale the values to [0, 1] in floating point"
    if high <= 255:
        return f" in [{low}, {high}]; convert with .astype(np.uint8)"
    return (
        f" in [{low}, {high}]; scale to [0, 1]: (array / full_scale).astype(np.float32), with the "
        f"value of white as full_scale"
    )


def _unit_floats(rgb: npt.NDArray[Any], label: str) -> npt.NDArray[np.float32]:
    low, high = float(rgb.min()), float(rgb.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(f"{label}: floating-point pixels must be finite, got NaN or infinity")
    if low < 0 or high > 1:
        if low >= 0 and high <= 255:
            advice = "divide by 255 or pass uint8"
        else:
            advice = "scale them, dividing by the value of white"
        raise ValueError(
            f"{label}: floating-point pixels must lie in [0, 1], got [{low:g}, {high:g}]; {advice}"
        )
    return np.ascontiguousarray(rgb, dtype=np.float32)
