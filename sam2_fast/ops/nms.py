"""Greedy non-maximum suppression of boxes, without torchvision.

It is deterministic, runs on any device, and needs no host synchronisation on a GPU.
"""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor

from sam2_fast.ops.core.op import Backend, Op
from sam2_fast.ops.core.requirements import fits, on_one, plain
from sam2_fast.proving.rules import Rule, bits

__all__ = ["batched_nms", "nms"]

BLOCK = 2048
"""Boxes that the definition compares at a time: 2048 x 2048 IoUs are 16 MB of float32."""
_MAX_BOXES = 2**15  # of the Triton kernel, which needs 128 MB for their overlap bits


def nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    idxs: Tensor | None = None,
    alive: Tensor | None = None,
    *,
    backend: str = "auto",
) -> Tensor:
    """Which boxes remain, [N] bool on the device of boxes.

    A box remains if it is alive, and if no remaining box of higher score and the same category
    overlaps it by more than `iou_threshold`.
    boxes: [N, 4] (x0, y0, x1, y1), compared in float32; scores: [N] (the earlier box wins a tie);
    idxs: [N] categories (None: one); alive: [N] bool (None: all).
    backend: "auto", "triton" or "torch"; all return the same boxes. Raises ValueError for shapes
    that do not fit, BackendError if the named backend cannot run.
    """
    idxs = torch.zeros_like(scores, dtype=torch.int64) if idxs is None else idxs
    alive = torch.ones_like(scores, dtype=torch.bool) if alive is None else alive
    if (
        boxes.ndim != 2
        or boxes.shape[1] != 4
        or any(x.shape != boxes.shape[:1] for x in (scores, idxs, alive))
    ):
        shapes = ", ".join(str(tuple(x.shape)) for x in (boxes, scores, idxs, alive))
        raise ValueError(
            f"boxes, scores, idxs, alive: expected shapes (N, 4) and three of (N,), got {shapes}"
        )
    order = scores.argsort(descending=True, stable=True)
    by_score = boxes[order].float(), idxs[order], alive[order]
    kept: Tensor = _OP(backend, *by_score, iou_threshold)
    return torch.empty_like(kept).index_copy_(0, order, kept)


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """The boxes that remain after `nms`, as int64 indices by falling score.

    Source: `torchvision.ops.batched_nms`; but categories are compared, instead of shifting the
    boxes of each category apart.
    """
    order = scores.argsort(descending=True, stable=True)
    return order[nms(boxes, scores, iou_threshold, idxs)[order]]


def nms_reference(boxes: Tensor, idxs: Tensor, alive: Tensor, threshold: float) -> Tensor:
    """The definition, in torch. Boxes are sorted by falling score. Returns [N] bool."""
    kept = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    for start in range(0, len(boxes), BLOCK):
        block = slice(start, start + BLOCK)
        free = alive[block]
        for earlier in range(0, start, BLOCK):
            part = slice(earlier, earlier + BLOCK)
            over = _overlap(boxes[part], idxs[part], boxes[block], idxs[block], threshold)
            free = free & ~(over & kept[part, None]).any(0)
        kept[block] = _greedy(
            _overlap(boxes[block], idxs[block], boxes[block], idxs[block], threshold), free
        )
    return kept


def _overlap(
    first: Tensor, first_idxs: Tensor, second: Tensor, second_idxs: Tensor, threshold: float
) -> Tensor:
    """Whether boxes have the same category and an IoU above the threshold: [N, M] bool.

    first: [N, 4]; second: [M, 4]. False if both boxes are empty.
    """
    corner = torch.maximum(first[:, None, :2], second[None, :, :2])
    side = (torch.minimum(first[:, None, 2:], second[None, :, 2:]) - corner).clamp(min=0)
    common = side[..., 0] * side[..., 1]
    iou = common / (_area(first)[:, None] + _area(second) - common)
    return (iou > threshold) & (first_idxs[:, None] == second_idxs)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _greedy(over: Tensor, alive: Tensor) -> Tensor:
    """The boxes that remain in a block sorted by score: [N] bool.

    A box remains if it is alive and no remaining earlier box overlaps it. Box i depends on boxes
    before i only, so that the fixed point is unique, and each round settles at least one more box.
    """
    over = over.triu(diagonal=1)
    kept = alive
    while True:
        updated = alive & ~(over & kept[:, None]).any(0)
        if torch.equal(updated, kept):
            return kept
        kept = updated


def _triton_nms(boxes: Tensor, idxs: Tensor, alive: Tensor, threshold: float) -> Tensor:
    from sam2_fast.kernels.nms import nms as kernel

    return kernel(
        boxes.detach().contiguous(), idxs.long().contiguous(), alive.contiguous(), threshold
    )


def _refuses(boxes: Tensor, idxs: Tensor, alive: Tensor, threshold: float) -> str | None:
    if idxs.is_floating_point():
        return f"idxs are {idxs.dtype}; supported: integers"
    if len(boxes) > _MAX_BOXES:
        return f"there are {len(boxes)} boxes; supported: up to {_MAX_BOXES}"
    return None


def _result(boxes: Tensor, idxs: Tensor, alive: Tensor, threshold: float) -> Tensor:
    return boxes.new_empty(boxes.shape[0], dtype=torch.bool)


def _configuration(boxes: Tensor, idxs: Tensor, alive: Tensor, threshold: float) -> Hashable:
    return bits(len(boxes)), idxs.dtype


_OP = Op(
    "nms",
    schema="(Tensor boxes, Tensor idxs, Tensor alive, float threshold) -> Tensor",
    reference=nms_reference,
    result=_result,
    backends=(
        Backend(
            "triton",
            _triton_nms,
            (on_one("cuda"), plain, fits(_refuses)),
            kernels=("overlap", "greedy"),
        ),
    ),
    fixed_by_values="its definition repeats until no box changes, so that a recording would be "
    "valid for the recorded boxes only",
    rule=Rule(_configuration),
)
