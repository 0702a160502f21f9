"""Counts, boxes and run lengths of masks from their low-resolution logits.

Logits of full size are never stored.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sam2_fast.ops.core.native import materialized, native
from sam2_fast.ops.core.op import Backend, Op
from sam2_fast.ops.core.requirements import fits, on_one, plain
from sam2_fast.proving.rules import Call, Rule, bits

__all__ = ["Judged", "mask_postprocess"]

_MAX_PIXELS = 2**31 - 1  # of a canvas
_PROVED_MASKS = 16  # masks in a proof of a kernel
_PIXELS_AT_ONCE = 2**26  # of masks that the definition stores at the same time


Keep = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(inner, outer, boxes as in `Judged`) -> [N] bool on the same device: masks that get run lengths.
"""


class Judged(NamedTuple):
    """Counts, boxes and run lengths of N masks."""

    inner: Tensor  # [N] int64 pixels above threshold + offset
    outer: Tensor  # [N] int64 pixels above threshold - offset
    # [N, 4] int64 (x0, y0, x1, y1), last pixel included, in pixels of `size`; zeros if empty
    boxes: Tensor
    # run lengths on the canvas, column by column: of zeros, of ones, of zeros, ...
    runs: list[npt.NDArray[np.int32]]
    # [K] int64 on the host, ascending: indices of the masks that `runs` has, or None for all
    kept: Tensor | None = None


def mask_postprocess(
    logits: Tensor,
    size: tuple[int, int],
    threshold: float,
    offset: float,
    *,
    canvas: tuple[int, int] | None = None,
    origin: tuple[int, int] = (0, 0),
    keep: Keep | None = None,
    which: Tensor | None = None,
    backend: str = "auto",
) -> Judged:
    """Interpolate logits, threshold them, and return counts, boxes and run lengths.

    The interpolation is bilinear with align_corners=False. A pixel is in the mask if its logit is
    above `threshold`.
    logits: [N, h, w] float32; size: (height, width) in pixels to interpolate to.
    canvas: (height, width) of the whole image; the mask is its part at `origin` = (top, left).
        None: the image is the mask itself.
    keep: selects the masks that get run lengths, on the device of the logits, without a
        device-to-host copy; None: all.
    which: [N] bool, masks to process; the others count as empty. None: all.
    backend: "auto", "triton", "cpu" or "torch". All backends return equal integers. Raises
    ValueError for sizes that do not fit, BackendError if the named backend cannot run.
    Source: official `SAM2Transforms.postprocess_masks`, `calculate_stability_score`,
    `batched_mask_to_box`, `mask_to_rle_pytorch`.
    """
    height, width = size
    canvas_height, canvas_width = canvas or size
    top, left = origin
    if logits.ndim != 3 or min(*logits.shape[1:], height, width) < 1:
        raise ValueError(
            "logits, size: expected [N, h, w] and (height, width) with at least one pixel, got "
            f"{tuple(logits.shape)} and {size}"
        )
    if (
        min(top, left) < 0
        or top + height > canvas_height
        or left + width > canvas_width
        or canvas_height * canvas_width > _MAX_PIXELS
    ):
        got = f"{canvas_height} x {canvas_width}"
        raise ValueError(
            f"canvas: expected room for {height} x {width} pixels at {origin} and fewer than 2^31 "
            f"in all, got {got}"
        )
    if which is not None and (which.shape != logits.shape[:1] or which.dtype != torch.bool):
        raise ValueError(
            f"which: expected a bool for each of {len(logits)} masks, got {which.dtype} of shape "
            f"{tuple(which.shape)}"
        )
    options = {"keep": keep, "which": materialized(which)}
    arguments = logits, size, threshold, offset, (canvas_height, canvas_width), origin
    run, inputs = _OP.select(backend, *arguments, **options)
    return run(*inputs, **options)


def _empty_others(logits: Tensor, which: Tensor | None) -> Tensor:
    """logits with masks outside `which` set to -inf, so that they are below every threshold."""
    return logits if which is None else logits.masked_fill(~which[:, None, None], float("-inf"))


def _drop_runs(judged: Judged, keep: Keep | None) -> Judged:
    """`judged`, which has the runs of all masks, with only the runs that `keep` selects."""
    if keep is None:
        return judged
    kept = keep(*judged[:3]).nonzero()[:, 0].cpu()
    return judged._replace(runs=[judged.runs[i] for i in kept.tolist()], kept=kept)


def interpolate(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear interpolation, [N, h, w] -> [N, *size], along rows first, in the dtype of `logits`.

    Every product and sum is rounded. Coordinates are computed in float64, so the result is closer
    to the exact one than that of torch.
    """
    for dim, (old, new) in ((2, (logits.shape[2], size[1])), (1, (logits.shape[1], size[0]))):
        position = (old / new * (torch.arange(new, dtype=torch.float64) + 0.5) - 0.5).clamp(min=0)
        first = position.floor().long().clamp(max=old - 1)
        second = (first + 1).clamp(max=old - 1).to(logits.device)
        second_weight = (position - first).clamp(max=1).to(logits)
        first = first.to(logits.device)
        if dim == 1:
            second_weight = second_weight[:, None]
        first_weight = 1 - second_weight
        first_values, second_values = (logits.index_select(dim, i) for i in (first, second))
        logits = first_weight * first_values + second_weight * second_values
    return logits


def mask_postprocess_reference(
    logits: Tensor,
    size: tuple[int, int],
    threshold: float,
    offset: float,
    canvas: tuple[int, int],
    origin: tuple[int, int],
    keep: Keep | None = None,
    which: Tensor | None = None,
) -> Judged:
    """The definition, in torch."""
    logits = _empty_others(logits, which)
    inner, outer, boxes = [], [], []
    runs: list[npt.NDArray[np.int32]] = []
    top, left = origin
    for part in torch.split(logits, max(1, _PIXELS_AT_ONCE // (canvas[0] * canvas[1]))):
        full = interpolate(part, size)
        inner.append((full > threshold + offset).flatten(1).sum(1))
        outer.append((full > threshold - offset).flatten(1).sum(1))
        masks = full > threshold
        boxes.append(
            torch.stack([_box(mask) for mask in masks])
            if len(masks)
            else logits.new_zeros(0, 4, dtype=torch.int64)
        )
        whole = masks.new_zeros(len(masks), *canvas)
        whole[:, top : top + size[0], left : left + size[1]] = masks
        runs += [_runs(mask) for mask in whole.transpose(1, 2).flatten(1)]
    return _drop_runs(Judged(torch.cat(inner), torch.cat(outer), torch.cat(boxes), runs), keep)


def _box(mask: Tensor) -> Tensor:
    """The bounding box of a mask [H, W] bool, as in `Judged`: [4]."""
    y, x = mask.nonzero(as_tuple=True)
    if not len(y):
        return torch.zeros(4, dtype=torch.int64, device=mask.device)
    return torch.stack([x.amin(), y.amin(), x.amax(), y.amax()])


def _runs(flat: Tensor) -> npt.NDArray[np.int32]:
    """The alternating run lengths of zeros and ones in flat [pixels] bool, zeros first."""
    edges = (flat[1:] != flat[:-1]).nonzero()[:, 0].cpu().numpy() + 1
    bounds = np.concatenate(([0, 0] if bool(flat[0]) else [0], edges, [flat.numel()]))
    return np.diff(bounds).astype(np.int32)


def _native_postprocess(
    logits: Tensor,
    size: tuple[int, int],
    threshold: float,
    offset: float,
    canvas: tuple[int, int],
    origin: tuple[int, int],
    isa: str | None = None,
    keep: Keep | None = None,
    which: Tensor | None = None,
) -> Judged:
    """Run the CPU kernel. isa: an older instruction set than this CPU's, for tests."""
    module = native()
    assert module is not None
    count = logits.shape[0]
    outer, inner, boxes = (
        torch.empty(shape, dtype=torch.int64, device=logits.device)
        for shape in ((count,), (count,), (count, 4))
    )
    thresholds = threshold - offset, threshold, threshold + offset
    runs = module.mask_postprocess(
        _empty_others(logits.detach(), which).contiguous(),
        *size,
        *canvas,
        *origin,
        *thresholds,
        outer,
        inner,
        boxes,
        torch.get_num_threads(),
        isa or module.cpu_isa(),
    )
    return _drop_runs(
        Judged(inner, outer, boxes, [np.frombuffer(run, dtype=np.int32) for run in runs]), keep
    )


def _triton_postprocess(
    logits: Tensor,
    size: tuple[int, int],
    threshold: float,
    offset: float,
    canvas: tuple[int, int],
    origin: tuple[int, int],
    keep: Keep | None = None,
    which: Tensor | None = None,
) -> Judged:
    from sam2_fast.kernels import mask_postprocess as kernels

    thresholds = threshold - offset, threshold, threshold + offset
    logits = logits.detach() if keep else _empty_others(logits.detach(), which)
    return Judged(
        *kernels.mask_postprocess(
            logits.contiguous(), size, *thresholds, canvas, origin, keep, which
        )
    )


def _refuses(logits: Tensor, *_: object) -> str | None:
    if logits.dtype == torch.float32:
        return None
    return f"logits are {logits.dtype}; supported: float32"


def _configuration(
    logits: Tensor,
    size: tuple[int, int],
    threshold: float,
    offset: float,
    canvas: tuple[int, int],
    origin: tuple[int, int],
    keep: object = None,
    which: object = None,
) -> Hashable:
    options = canvas == size, keep is None, which is None
    return *logits.shape[1:], bits(size[0] * size[1]), *options


def _sample(call: Call) -> Call:
    if call.named.get("keep") is not None or call.named.get("which") is not None:
        return call  # these options refer to all masks
    logits, *rest = call.arguments
    return Call((logits[:_PROVED_MASKS], *rest), call.named)


_OP = Op(
    "mask_postprocess",
    reference=mask_postprocess_reference,
    backends=(
        Backend(
            "triton",
            _triton_postprocess,
            (on_one("cuda"), plain, fits(_refuses)),
            kernels=("bits", "count", "write"),
        ),
        Backend("cpu", _native_postprocess, (on_one("cpu"), plain, fits(_refuses))),
    ),
    fixed_by_values="it returns lists with lengths that depend on the masks",
    rule=Rule(_configuration, _sample),
)
