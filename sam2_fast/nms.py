"""Greedy non-maximum suppression of boxes, without torchvision: deterministic, on any device, with few device steps."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 2048
"""Boxes compared at once: 2048 x 2048 IoUs are 16 MB of float32."""


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """Keep the boxes that no kept box of higher score and the same category overlaps by more than `iou_threshold`.

    boxes: [N, 4] (x0, y0, x1, y1); scores: [N] (the earlier box wins a tie); idxs: [N] categories.
    Returns int64 indices by falling score. Source: `torchvision.ops.batched_nms`, with categories compared instead of shifted apart.
    """
    if boxes.ndim != 2 or boxes.shape[1] != 4 or scores.shape != boxes.shape[:1] or idxs.shape != boxes.shape[:1]:
        shapes = f"{tuple(boxes.shape)}, {tuple(scores.shape)} and {tuple(idxs.shape)}"
        raise ValueError(f"boxes, scores, idxs: expected shapes (N, 4), (N,) and (N,), got {shapes}")
    order = scores.argsort(descending=True, stable=True)
    boxes, idxs = boxes[order].float(), idxs[order]
    kept = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    for start in range(0, len(boxes), BLOCK):
        block = slice(start, start + BLOCK)
        alive = torch.ones(len(boxes[block]), dtype=torch.bool, device=boxes.device)
        for earlier in range(0, start, BLOCK):
            part = slice(earlier, earlier + BLOCK)
            over = _overlap(boxes[part], idxs[part], boxes[block], idxs[block], iou_threshold)
            alive &= ~(over & kept[part, None]).any(0)
        kept[block] = _greedy(_overlap(boxes[block], idxs[block], boxes[block], idxs[block], iou_threshold), alive)
    return order[kept]


def _overlap(first: Tensor, first_idxs: Tensor, second: Tensor, second_idxs: Tensor, threshold: float) -> Tensor:
    """[N, 4] and [M, 4] -> [N, M] bool: same category and IoU above the threshold (never, where both boxes are empty)."""
    corner = torch.maximum(first[:, None, :2], second[None, :, :2])
    side = (torch.minimum(first[:, None, 2:], second[None, :, 2:]) - corner).clamp(min=0)
    common = side[..., 0] * side[..., 1]
    iou = common / (_area(first)[:, None] + _area(second) - common)
    return (iou > threshold) & (first_idxs[:, None] == second_idxs)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _greedy(over: Tensor, alive: Tensor) -> Tensor:
    """The greedy answer in a block sorted by score: a box stays where it is alive and no earlier box that stays is over it.

    Box i depends on boxes before i only, so the equation has one solution, and each round settles at least one more box.
    """
    over = over.triu(diagonal=1)
    kept = alive
    while True:
        found = alive & ~(over & kept[:, None]).any(0)
        if torch.equal(found, kept):
            return kept
        kept = found
