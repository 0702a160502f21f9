"""8-connected components of masks: labels, areas, and the pixels of small components."""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_fast.ops.core.native import native
from sam2_fast.ops.core.op import Backend, Op
from sam2_fast.ops.core.requirements import fits, on_one, plain
from sam2_fast.proving.rules import FEW, Call, Rule, bits

MAX_PIXELS = 2**31 - 1
"""Pixels of the largest mask: labels are int32."""

__all__ = ["connected_components", "small_components"]


def connected_components(
    masks: Tensor, *, backend: str = "auto", out: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Label every 8-connected component of each mask and measure it.

    masks: [N, H, W] or [N, 1, H, W], bool or uint8 (non-zero is foreground), any strides, any
    device.
    Returns labels and areas, int32 of the same shape, both 0 on background. A label is 1 + the
    row-major index of the component's first pixel; all backends return equal labels. An area is in
    pixels. Partition and areas are those of the official `get_connected_components`.
    out: labels and areas to write to and return, contiguous: on a CPU, fresh memory for many large
    masks costs more than the labelling.
    backend: "auto", "cuda", "triton", "cpu" or "torch". Raises TypeError for other dtypes,
    ValueError for other shapes, BackendError if the named backend cannot run.
    """
    flat = _as_masks(masks)
    flat_out = None if out is None else _flat_out(out, masks, flat)
    run, inputs = _COMPONENTS.select(backend, flat)
    result = run(*inputs, flat_out) if run is _native_components else run(*inputs)
    if flat_out is not None and result is not flat_out:
        flat_out[0].copy_(result[0])
        flat_out[1].copy_(result[1])
    labels, areas = result if out is None else out
    return labels.view(masks.shape), areas.view(masks.shape)


def _flat_out(out: tuple[Tensor, Tensor], masks: Tensor, flat: Tensor) -> tuple[Tensor, Tensor]:
    """`out` in the shape of `flat`. Raises ValueError for tensors that cannot be written to."""
    for name, x in zip(("labels", "areas"), out, strict=True):
        if (
            x.dtype != torch.int32
            or x.shape != masks.shape
            or x.device != masks.device
            or not x.is_contiguous()
        ):
            expected = f"contiguous int32 of shape {tuple(masks.shape)} on {masks.device}"
            raise ValueError(
                f"out: {name}: expected {expected}, got {x.dtype} of shape {tuple(x.shape)}, "
                f"strides {x.stride()} on {x.device}"
            )
        if x.is_neg() or x._is_zerotensor():
            raise ValueError(
                f"out: {name}: expected memory that holds the numbers, got a lazily negated or "
                "zero tensor; pass torch.empty"
            )
    if _overlap(*out):
        raise ValueError("out: expected separate memory for labels and areas, got the same")
    for name, x in zip(("labels", "areas"), out, strict=True):
        if _overlap(x, flat):
            raise ValueError(f"out: {name}: expected memory separate from masks, got the same")
    return out[0].view(flat.shape), out[1].view(flat.shape)


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Whether contiguous tensors share memory."""
    start, other = a.data_ptr(), b.data_ptr()
    return start < other + b.nbytes and other < start + a.nbytes


def small_components(masks: Tensor, max_area: int, *, backend: str = "auto") -> Tensor:
    """The foreground pixels of components of at most `max_area` pixels.

    masks as in `connected_components`; max_area: pixels, 0 or more. Returns bool of the same shape.
    """
    try:
        most = operator.index(max_area)
    except TypeError:
        raise TypeError(
            f"max_area: expected an integer, got {type(max_area).__name__} {max_area!r}"
        ) from None
    if most < 0:
        raise ValueError(f"max_area: expected 0 or more pixels, got {most}")
    flat = _as_masks(masks)
    if most == 0:
        return torch.zeros_like(masks, dtype=torch.bool)
    small: Tensor = _SMALL(backend, flat, min(most, MAX_PIXELS))
    return small.view(masks.shape)


def _as_masks(masks: Tensor) -> Tensor:
    if type(masks) is Tensor and masks.is_meta:
        raise ValueError("masks: expected a tensor with values, got one on the device meta")
    if masks.dtype not in (torch.bool, torch.uint8):
        raise TypeError(
            f"masks: expected bool or uint8, got {masks.dtype}; compare logits with a threshold "
            "first, e.g. masks > 0"
        )
    if masks.ndim == 4 and masks.shape[1] == 1:
        masks = masks[:, 0]
    if masks.ndim != 3:
        raise ValueError(
            f"masks: expected shape [N, H, W] or [N, 1, H, W], got {tuple(masks.shape)}"
        )
    if masks.shape[1] * masks.shape[2] > MAX_PIXELS:  # before a copy of an expanded tensor
        raise ValueError(
            f"masks: expected fewer than 2^31 pixels a mask, got {tuple(masks.shape)}; cut it "
            "into parts"
        )
    return masks.contiguous()


def connected_components_reference(masks: Tensor) -> tuple[Tensor, Tensor]:
    """The definition, in torch. masks: [N, H, W].

    Every foreground pixel takes the smallest index of its neighbours, until no index changes.
    """
    count, height, width = masks.shape
    foreground = masks != 0
    if masks.numel() == 0:
        return torch.zeros_like(masks, dtype=torch.int32), torch.zeros_like(
            masks, dtype=torch.int32
        )
    # max-pooling negated indices finds the minimum; float64 holds every index below 2^53 exactly
    index = torch.arange(1, height * width + 1, device=masks.device, dtype=torch.float64).view(
        1, height, width
    )
    background = -torch.inf
    value = torch.where(foreground, -index, background)
    while True:
        spread = torch.where(
            foreground, F.max_pool2d(value[:, None], 3, stride=1, padding=1)[:, 0], background
        )
        # a value is the index of a pixel: also take the value of that pixel, so that long thin
        # components need few rounds
        target = (-torch.where(foreground, spread, -1.0)).long() - 1
        spread = torch.where(
            foreground,
            torch.maximum(spread, spread.flatten(1).gather(1, target.flatten(1)).view_as(spread)),
            background,
        )
        if torch.equal(spread, value):
            break
        value = spread
    labels = torch.where(foreground, -value, 0.0).to(torch.int64)
    counts = torch.zeros(count, height * width + 1, dtype=torch.int32, device=masks.device)
    counts.scatter_add_(1, labels.flatten(1), torch.ones_like(labels.flatten(1), dtype=torch.int32))
    areas = torch.where(foreground, counts.gather(1, labels.flatten(1)).view_as(labels), 0)
    return labels.to(torch.int32), areas


def small_components_reference(masks: Tensor, max_area: int) -> Tensor:
    """The definition of `small_components`, on [N, H, W]."""
    areas = connected_components_reference(masks)[1]
    return (areas > 0) & (areas <= max_area)


def _native_components(
    masks: Tensor, out: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    labels, areas = out or (
        torch.empty(masks.shape, dtype=torch.int32, device=masks.device) for _ in range(2)
    )
    module = native()
    assert module is not None
    module.connected_components(masks, labels, areas, torch.get_num_threads())
    return out or (labels, areas)


def _native_small(masks: Tensor, max_area: int) -> Tensor:
    module = native()
    assert module is not None
    if masks.is_cuda and max_area > module.max_local_area:
        areas = _native_components(masks)[1]
        return (areas > 0) & (areas <= max_area)
    small = torch.empty(masks.shape, dtype=torch.bool, device=masks.device)
    module.small_components(masks, small, max_area, torch.get_num_threads())
    return small


def _triton_components(masks: Tensor) -> tuple[Tensor, Tensor]:
    from sam2_fast.kernels import connected_components as kernels

    return kernels.connected_components(masks)


def _triton_small(masks: Tensor, max_area: int) -> Tensor:
    areas = _triton_components(masks)[1]
    return (areas > 0) & (areas <= max_area)


def _refuses(masks: Tensor, *_: object) -> str | None:
    height, width = masks.shape[1:3]
    if height * width < 2**31:
        return None
    return f"a mask has {height} x {width} pixels; supported: fewer than 2^31"


def _backends(
    run_native: Callable[..., Any], run_triton: Callable[..., Any]
) -> tuple[Backend, ...]:
    on_gpu, on_cpu = ((on_one(kind), plain, fits(_refuses)) for kind in ("cuda", "cpu"))
    return (
        Backend("cuda", run_native, on_gpu),
        Backend("triton", run_triton, on_gpu, kernels=("init", "merge", "count", "spread")),
        Backend("cpu", run_native, on_cpu),
    )


def _configuration(masks: Tensor, *_: object) -> tuple[Hashable, ...]:
    return masks.dtype, bits(masks.shape[1] * masks.shape[2])


def _small_configuration(masks: Tensor, max_area: int) -> Hashable:
    return *_configuration(masks), bits(max_area)


def _sample(call: Call) -> Call:
    """The first masks, and one with many tangled components, since real masks may be empty."""
    masks, *rest = call.arguments
    index = torch.arange(masks.shape[1] * masks.shape[2], device=masks.device)
    tangled = ((index * 40503 % 65537) % 5 < 3).view(1, *masks.shape[1:]).to(masks.dtype)
    return Call((torch.cat([masks[:FEW], tangled]), *rest), call.named)


def _result(masks: Tensor) -> tuple[Tensor, Tensor]:
    labels, areas = (torch.empty_like(masks, dtype=torch.int32) for _ in range(2))
    return labels, areas


def _small_result(masks: Tensor, max_area: int) -> Tensor:
    return torch.empty_like(masks, dtype=torch.bool)


_FIXED = (
    "its definition repeats until no index changes, so that a recording would be valid for the "
    "recorded masks only"
)
_COMPONENTS = Op(
    "connected_components",
    schema="(Tensor masks) -> (Tensor, Tensor)",
    reference=connected_components_reference,
    result=_result,
    backends=_backends(_native_components, _triton_components),
    fixed_by_values=_FIXED,
    rule=Rule(_configuration, _sample),
)
_SMALL = Op(
    "small_components",
    schema="(Tensor masks, int max_area) -> Tensor",
    reference=small_components_reference,
    result=_small_result,
    backends=_backends(_native_small, _triton_small),
    fixed_by_values=_FIXED,
    rule=Rule(_small_configuration, _sample),
)
