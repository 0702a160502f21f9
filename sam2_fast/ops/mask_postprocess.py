"""From low-resolution mask logits to what is kept of a mask, without the full-size logits ever
existing."""

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

_MOST = 2**31 - 1  # pixels of a canvas
_PROVED = 16  # masks on which a kernel is proved
_AT_ONCE = 2**26  # pixels of masks that the definition holds at once


Keep = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(inner, outer, boxes as in `Judged`) -> [N] bool on the same device: whose run lengths are
wanted."""


class Judged(NamedTuple):
    """What is kept of N masks."""

    inner: Tensor  # [N] int64 pixels above threshold + offset
    outer: Tensor  # [N] int64 pixels above threshold - offset
    # [N, 4] int64 (x0, y0, x1, y1), last pixel included, in pixels of `size`; zeros where empty
    boxes: Tensor
    # run lengths on the canvas: zeros and ones in turn, column by column, zeros first
    runs: list[npt.NDArray[np.int32]]
    # [K] int64 on the host, ascending: of which masks the runs are; None: of all
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
    """Interpolate logits bilinearly (corners not aligned, as torch does), threshold them, and keep
    counts, boxes and run lengths.

    logits: [N, h, w] float32; size: (height, width) in pixels to interpolate to. canvas: (height,
    width) of the image of which the mask is the part at `origin` = (top, left); None: the mask
    itself. A pixel is in the mask where its logit is above `threshold`.
    keep: which masks' run lengths are wanted, judged where the logits are, without a
        device-to-host copy; None: all.
    which: [N] bool, masks that are looked at; others count as empty. None: all.
    backend: "auto", "triton", "cpu" or "torch". Every backend returns the same integers. Raises
    ValueError for sizes that do not fit, BackendError where the named backend cannot run.
    Source: official `SAM2Transforms.postprocess_masks`, `calculate_stability_score`,
    `batched_mask_to_box`, `mask_to_rle_pytorch`.
    """
    height, width = size
    (canvas_height, canvas_width), (top, left) = canvas or size, origin
    if logits.ndim != 3 or min(*logits.shape[1:], height, width) < 1:
        raise ValueError(
            "logits, size: expected [N, h, w] with a pixel or more to (height, width), got "
            f"{tuple(logits.shape)} and {size}"
        )
    if (
        min(top, left) < 0
        or top + height > canvas_height
        or left + width > canvas_width
        or canvas_height * canvas_width > _MOST
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
    run, given = _OP.select(backend, *arguments, **options)
    return run(*given, **options)


def _seen(logits: Tensor, which: Tensor | None) -> Tensor:
    """logits, of masks that are not looked at all -inf: what is interpolated between them is above
    no threshold."""
    return logits if which is None else logits.masked_fill(~which[:, None, None], float("-inf"))


def _selected(found: Judged, keep: Keep | None) -> Judged:
    """What `keep` lets pass of masks whose runs are there already."""
    if keep is None:
        return found
    kept = keep(*found[:3]).nonzero()[:, 0].cpu()
    return found._replace(runs=[found.runs[i] for i in kept.tolist()], kept=kept)


def interpolate(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """[N, h, w] -> [N, *size]: products and sums rounded one by one, along rows first, in the dtype
    of `logits`.

    Places are computed in float64, so the result is nearer to the exact one than torch's.
    """
    for dim, (old, new) in ((2, (logits.shape[2], size[1])), (1, (logits.shape[1], size[0]))):
        at = (old / new * (torch.arange(new, dtype=torch.float64) + 0.5) - 0.5).clamp(min=0)
        first = at.floor().long().clamp(max=old - 1)
        second = (first + 1).clamp(max=old - 1).to(logits.device)
        rest = (at - first).clamp(max=1).to(logits)
        first, weight, rest = first.to(logits.device), 1 - rest, rest
        if dim == 1:
            weight, rest = weight[:, None], rest[:, None]
        logits = weight * logits.index_select(dim, first) + rest * logits.index_select(dim, second)
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
    logits = _seen(logits, which)
    inner, outer, boxes = [], [], []
    runs: list[npt.NDArray[np.int32]] = []
    top, left = origin
    for some in torch.split(logits, max(1, _AT_ONCE // (canvas[0] * canvas[1]))):
        full = interpolate(some, size)
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
    return _selected(Judged(torch.cat(inner), torch.cat(outer), torch.cat(boxes), runs), keep)


def _box(mask: Tensor) -> Tensor:
    """mask: [H, W] bool -> [4]."""
    y, x = mask.nonzero(as_tuple=True)
    if not len(y):
        return torch.zeros(4, dtype=torch.int64, device=mask.device)
    return torch.stack([x.amin(), y.amin(), x.amax(), y.amax()])


def _runs(flat: Tensor) -> npt.NDArray[np.int32]:
    """flat: [pixels] bool -> lengths of zeros and ones in turn."""
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
    """`isa`: run with a narrower instruction set than this CPU's, for tests."""
    module = native()
    assert module is not None
    count = logits.shape[0]
    outer, inner, boxes = (
        torch.empty(shape, dtype=torch.int64, device=logits.device)
        for shape in ((count,), (count,), (count, 4))
    )
    thresholds = threshold - offset, threshold, threshold + offset
    runs = module.mask_postprocess(
        _seen(logits.detach(), which).contiguous(),
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
    return _selected(
        Judged(inner, outer, boxes, [np.frombuffer(one, dtype=np.int32) for one in runs]), keep
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
    given = logits.detach() if keep else _seen(logits.detach(), which)
    return Judged(
        *kernels.mask_postprocess(
            given.contiguous(), size, *thresholds, canvas, origin, keep, which
        )
    )


def _refuses(logits: Tensor, *_: object) -> str | None:
    if logits.dtype == torch.float32:
        return None
    return f"logits are {logits.dtype}, it takes float32"


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
        return call  # what they say is about all masks
    logits, *rest = call.arguments
    return Call((logits[:_PROVED], *rest), call.named)


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
    fixed_by_values="it returns lists whose lengths depend on the masks",
    rule=Rule(_configuration, _sample),
)
