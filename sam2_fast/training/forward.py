"""Clips as training sees them: prompts, corrections, memories, and every step's masks with their
gradients (`SAM2Train` upstream).

The modules are those of inference; what differs is here: masks keep their gradients, all of a
step's masks are returned, and the simulated
annotator clicks. Frames that are prompted with the true mask give no steps: nothing is learned from
them but what they leave in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sam2_fast.config import NO_OBJECT_LOGIT
from sam2_fast.memory import MemoryBank
from sam2_fast.model import Sam2
from sam2_fast.model.prompt_encoder import padding_points
from sam2_fast.ops.mask_decoder.reference import select_one
from sam2_fast.ops.object_heads import mix_absent
from sam2_fast.training.batches import Batch
from sam2_fast.training.losses import Step
from sam2_fast.training.simulation import Annotator, Hands, Plan, correction, first_prompt
from sam2_fast.types import Features, FrameMemory, Points


def simulate(
    model: Sam2,
    batch: Batch,
    plan: Plan,
    rng: np.random.Generator,
    annotator: Annotator | None = None,
    *,
    recompute: bool = False,
) -> list[list[Step]]:
    """The steps of each frame. plan: of clips of T frames; rng: draws the annotator's habits, each
    clip's seed where clicks land.

    Memories of corrected frames count as prompted ones. recompute: activations of the image encoder
    and of memory attention are not kept but computed again on the way back; the numbers are the
    same.
    """
    length, count, _, height, width = batch.images.shape
    if length != len(plan.order) or height != model.config.image_size or width != height:
        size = model.config.image_size
        raise ValueError(
            f"batch: expected images [{len(plan.order)}, B, 3, {size}, {size}], got "
            f"{tuple(batch.images.shape)}"
        )
    again = _recomputed if recompute else _once
    annotator, hands = annotator or Annotator(), Hands(rng, batch.seeds, batch.owner.tolist())
    features = Features(*again(model.encode_image, batch.images.flatten(0, 1)))
    banks = [MemoryBank() for _ in range(batch.truth.shape[1])]
    frames: list[list[Step]] = [[] for _ in range(length)]
    for t in plan.order:
        # of one clip the objects share the frame
        now = Features(
            *(
                x[t * count : (t + 1) * count] if count == 1 else x[t * count + batch.owner]
                for x in features
            )
        )
        truth, prompted = batch.truth[t][:, None], t in plan.prompted
        if prompted and not plan.points:
            logits, pointer, presence = model.point_to(now, truth.to(batch.images.dtype))
        else:
            low = (
                model.without_memory(now.low)
                if prompted
                else again(model.attend, now.low, *_recalled(model, banks, t))
            )
            clicks = annotator.clicks if t in plan.corrected else 0
            frames[t], logits, pointer, presence = _interact(
                model, low, now, truth, prompted, clicks, hands, annotator
            )
        maps = (
            model.encode_memory(now.low, logits, presence, False)
            if length > 1
            else [None] * len(banks)
        )
        for bank, *memory in zip(banks, pointer, presence, maps, strict=True):
            kept = bank.prompted if prompted or t in plan.corrected else bank.tracked
            kept[t] = FrameMemory(*memory)
    return frames


def _once(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


def _recomputed(function: Callable[..., Any], *arguments: Any) -> Any:
    return checkpoint(function, *arguments, use_reentrant=False)


def _recalled(model: Sam2, banks: list[MemoryBank], t: int) -> tuple[Any, ...]:
    """What `attend` takes besides the frame. All objects have memories of the same frames, and so
    recall the same ones.
    """
    recall = banks[0].recall(t, 1, None, *model.recall_limits._replace(stride=1))
    maps = [[bank.map(frame) for frame in recall.maps] for bank in banks]
    pointers = [torch.stack([bank.pointer(frame) for frame in recall.pointers]) for bank in banks]
    count = len(banks)
    return maps, [recall.rows] * count, pointers, [recall.ages] * count, recall.longest


def _interact(
    model: Sam2,
    low: Tensor,
    now: Features,
    truth: Tensor,
    prompted: bool,
    clicks: int,
    hands: Hands,
    annotator: Annotator,
) -> tuple[list[Step], Tensor, Tensor, Tensor]:
    """One decode, then one after each correction: the steps, and the last one's logits [N, 1, 4h,
    4w], pointer and presence.
    """
    points = Points(*first_prompt(hands, truth, annotator)) if prompted else None
    nowhere = padding_points(len(truth), low.device)
    hint: Tensor | None = None
    steps: list[Step] = []
    while True:
        multimask = model.options.use_multimask(
            0 if points is None else points.labels.shape[1], prompted
        )
        found = model.decode(low, now, points or nowhere, hint, multimask)
        present = found.presence > 0
        logits = torch.where(present[:, None, None], found.logits, NO_OBJECT_LOGIT)
        fine = F.interpolate(
            logits, size=tuple(truth.shape[2:]), mode="bilinear", align_corners=False
        )
        steps.append(Step(fine, found.iou, found.presence))
        best = found.iou.argmax(-1)
        hint = select_one(logits, best)
        if len(steps) > clicks:
            token = select_one(found.tokens, best)[:, 0]
            return (
                steps,
                hint,
                mix_absent(model.obj_ptr_proj(token), present, model.no_obj_ptr),
                found.presence,
            )
        more = correction(hands, truth, select_one(fine, best) > 0, annotator)
        points = (
            Points(*more)
            if points is None
            else Points(*(torch.cat(pair, 1) for pair in zip(points[:2], more, strict=True)))
        )
