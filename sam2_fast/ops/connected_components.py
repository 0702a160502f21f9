"""Connected components of masks (8-connected): labels, areas, and the pixels of small
components."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_fast.ops.core.native import native
from sam2_fast.ops.core.op import Backend, Op
from sam2_fast.ops.core.requirements import fits, on_one, plain
from sam2_fast.proving.rules import FEW, Call, Rule, bits

__all__ = ["connected_components", "small_components"]


def connected_components(
    masks: Tensor, *, backend: str = "auto", out: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Label every 8-connected component of each mask and measure it.

    masks: [N, H, W] or [N, 1, H, W], bool or uint8 (non-zero is foreground), any strides, any
    device.
    Returns labels and areas, int32 of the same shape: a label is 1 + the row-major index of the
    component's first pixel, so that all backends return the same; an area is in pixels; both are 0
    on background.
    out: labels and areas to write to and return, contiguous: on a CPU, fresh memory for many large
    masks costs more than the labelling.
    backend: "auto", "cuda", "triton", "cpu" or "torch". Raises TypeError for other dtypes,
    ValueError for other shapes, BackendError where the named backend cannot run. Same partition and
    areas as the official `get_connected_components`.
    """
    flat = _as_masks(masks)
    into = None if out is None else _as_results(out, masks, flat)
    run, given = _COMPONENTS.select(backend, flat)
    found = run(*given, into) if run is _native_components else run(*given)
    if into is not None and found is not into:
        into[0].copy_(found[0]), into[1].copy_(found[1])
    labels, areas = found if out is None else out
    return labels.view(masks.shape), areas.view(masks.shape)


def _as_results(out: tuple[Tensor, Tensor], masks: Tensor, flat: Tensor) -> tuple[Tensor, Tensor]:
    for name, x in zip(("labels", "areas"), out, strict=True):
        if (
            x.dtype != torch.int32
            or x.shape != masks.shape
            or x.device != masks.device
            or not x.is_contiguous()
        ):
            wanted = f"contiguous int32 of shape {tuple(masks.shape)} on {masks.device}"
            raise ValueError(
                f"out: {name}: expected {wanted}, got {x.dtype} of shape {tuple(x.shape)}, strides "
                f"{x.stride()} on {x.device}"
            )
        if x.is_neg() or x._is_zerotensor():
            raise ValueError(
                f"out: {name}: expected memory that holds the numbers, got a lazily negated or "
                "zero tensor; pass torch.empty"
            )
    if out[0].data_ptr() == out[1].data_ptr() and out[0].numel():
        raise ValueError(
            "out: expected labels and areas in memory of their own, got the same for both"
        )
    return out[0].view(flat.shape), out[1].view(flat.shape)


def small_components(masks: Tensor, max_area: int, *, backend: str = "auto") -> Tensor:
    """Which foreground pixels belong to a component of at most `max_area` pixels.

    masks as in `connected_components`; max_area: pixels, 0 or more. Returns bool of the same shape.
    """
    if max_area < 0:
        raise ValueError(f"max_area: expected 0 or more pixels, got {max_area}")
    flat = _as_masks(masks)
    if max_area == 0:
        return torch.zeros_like(masks, dtype=torch.bool)
    small: Tensor = _SMALL(backend, flat, max_area)
    return small.view(masks.shape)


def _as_masks(masks: Tensor) -> Tensor:
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
    return masks.contiguous()


def connected_components_reference(masks: Tensor) -> tuple[Tensor, Tensor]:
    """The definition: every foreground pixel takes the smallest index around it until nothing
    changes. masks: [N, H, W]."""
    count, height, width = masks.shape
    on = masks != 0
    if masks.numel() == 0:
        return torch.zeros_like(masks, dtype=torch.int32), torch.zeros_like(
            masks, dtype=torch.int32
        )
    # max-pooling negated indices finds the minimum; float64 holds every index below 2^53 exactly
    index = torch.arange(1, height * width + 1, device=masks.device, dtype=torch.float64).view(
        1, height, width
    )
    nothing = -torch.inf
    value = torch.where(on, -index, nothing)
    while True:
        spread = torch.where(
            on, F.max_pool2d(value[:, None], 3, stride=1, padding=1)[:, 0], nothing
        )
        # jump to what one's own representative has found: long thin components need few rounds
        target = (-torch.where(on, spread, -1.0)).long() - 1
        spread = torch.where(
            on,
            torch.maximum(spread, spread.flatten(1).gather(1, target.flatten(1)).view_as(spread)),
            nothing,
        )
        if torch.equal(spread, value):
            break
        value = spread
    labels = torch.where(on, -value, 0.0).to(torch.int64)
    counts = torch.zeros(count, height * width + 1, dtype=torch.int32, device=masks.device)
    counts.scatter_add_(1, labels.flatten(1), torch.ones_like(labels.flatten(1), dtype=torch.int32))
    areas = torch.where(on, counts.gather(1, labels.flatten(1)).view_as(labels), 0)
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
    module.small_components(masks, small, min(max_area, 2**31 - 1), torch.get_num_threads())
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
    return f"a mask of {height} x {width} pixels, it takes fewer than 2^31"


def _backends(on_device: Callable[..., Any], in_triton: Callable[..., Any]) -> tuple[Backend, ...]:
    on_gpu, on_cpu = ((on_one(kind), plain, fits(_refuses)) for kind in ("cuda", "cpu"))
    return (
        Backend("cuda", on_device, on_gpu),
        Backend("triton", in_triton, on_gpu, kernels=("init", "merge", "count", "spread")),
        Backend("cpu", on_device, on_cpu),
    )


def _configuration(masks: Tensor, *_: object) -> tuple[Hashable, ...]:
    return masks.dtype, bits(masks.shape[1] * masks.shape[2])


def _small_configuration(masks: Tensor, max_area: int) -> Hashable:
    return *_configuration(masks), bits(max_area)


def _sample(call: Call) -> Call:
    """The first masks, and one of many tangled components: real masks may be empty."""
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
    "its definition repeats until nothing changes, so that a recording would hold for the recorded "
    "masks only"
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
