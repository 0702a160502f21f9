"""The forward pass of training: prompts, corrections, memories, and the masks of every step.

This is `SAM2Train` of the official code. The modules are those of inference. What differs is that
masks keep their gradients, all masks of a step are returned, and the simulated annotator clicks.
Frames that are prompted with the true mask give no steps: they have no loss and are only stored in
memory.
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
from sam2_fast.memory import FrameMemory, MemoryBank
from sam2_fast.model import Sam2
from sam2_fast.model.prompt_encoder import padding_points
from sam2_fast.ops.mask_decoder.reference import select_one
from sam2_fast.ops.object_heads import mix_absent
from sam2_fast.training.batches import Batch
from sam2_fast.training.losses import Step
from sam2_fast.training.simulation import Annotator, Hands, Plan, correction, first_prompt
from sam2_fast.types import Features, Points


def simulate(
    model: Sam2,
    batch: Batch,
    plan: Plan,
    rng: np.random.Generator,
    annotator: Annotator | None = None,
    *,
    recompute: bool = False,
) -> list[list[Step]]:
    """The steps of each frame.

    plan: for clips of T frames.
    rng: draws the annotator's habits; the positions of clicks are drawn from each clip's seed.
    recompute: recompute the activations of the image encoder and of memory attention in the
        backward pass instead of storing them; the results are the same.
    Memories of corrected frames are stored like those of prompted frames.
    """
    length, count, _, height, width = batch.images.shape
    if length != len(plan.order) or height != model.config.image_size or width != height:
        size = model.config.image_size
        raise ValueError(
            f"batch: expected images [{len(plan.order)}, B, 3, {size}, {size}], got "
            f"{tuple(batch.images.shape)}"
        )
    call = _call_with_recompute if recompute else _call
    annotator = annotator or Annotator()
    hands = Hands(rng, batch.seeds, batch.owner.tolist())
    features = Features(*call(model.encode_image, batch.images.flatten(0, 1)))
    banks = [MemoryBank() for _ in range(batch.truth.shape[1])]
    frames: list[list[Step]] = [[] for _ in range(length)]
    for t in plan.order:
        # With a single clip, the objects share the frame and a batch of 1 is broadcast.
        frame = Features(
            *(
                x[t * count : (t + 1) * count] if count == 1 else x[t * count + batch.owner]
                for x in features
            )
        )
        truth = batch.truth[t][:, None]
        prompted = t in plan.prompted
        if prompted and not plan.points:
            logits, pointer, presence = model.point_to(frame, truth.to(batch.images.dtype))
        else:
            low = (
                model.without_memory(frame.low)
                if prompted
                else call(model.attend, frame.low, *_memories(model, banks, t))
            )
            clicks = annotator.clicks if t in plan.corrected else 0
            frames[t], logits, pointer, presence = _interact(
                model, low, frame, truth, prompted, clicks, hands, annotator
            )
        maps = (
            model.encode_memory(frame.low, logits, presence, False)
            if length > 1
            else [None] * len(banks)
        )
        for bank, *memory in zip(banks, pointer, presence, maps, strict=True):
            memories = bank.prompted if prompted or t in plan.corrected else bank.tracked
            memories[t] = FrameMemory(*memory)
    return frames


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


def _call_with_recompute(function: Callable[..., Any], *arguments: Any) -> Any:
    return checkpoint(function, *arguments, use_reentrant=False)


def _memories(model: Sam2, banks: list[MemoryBank], t: int) -> tuple[Any, ...]:
    """The arguments of `attend` besides the frame.

    All objects have memories of the same frames, so the frames to attend to are the same for all.
    """
    recall = banks[0].recall(t, 1, None, *model.recall_limits)
    maps = [[bank.map(frame) for frame in recall.maps] for bank in banks]
    pointers = [torch.stack([bank.pointer(frame) for frame in recall.pointers]) for bank in banks]
    count = len(banks)
    return maps, [recall.rows] * count, pointers, [recall.ages] * count, recall.longest


def _interact(
    model: Sam2,
    low: Tensor,
    frame: Features,
    truth: Tensor,
    prompted: bool,
    clicks: int,
    hands: Hands,
    annotator: Annotator,
) -> tuple[list[Step], Tensor, Tensor, Tensor]:
    """Decode once, and once more after each correction.

    Returns the steps, and of the last one logits [N, 1, 4h, 4w], pointer and presence.
    """
    points = Points(*first_prompt(hands, truth, annotator)) if prompted else None
    no_points = padding_points(len(truth), low.device)
    hint: Tensor | None = None
    steps: list[Step] = []
    while True:
        multimask = model.options.use_multimask(
            0 if points is None else points.labels.shape[1], prompted
        )
        output = model.decode(low, frame, points or no_points, hint, multimask)
        present = output.presence > 0
        logits = torch.where(present[:, None, None], output.logits, NO_OBJECT_LOGIT)
        full_size = F.interpolate(
            logits, size=tuple(truth.shape[2:]), mode="bilinear", align_corners=False
        )
        steps.append(Step(full_size, output.iou, output.presence))
        best = output.iou.argmax(-1)
        hint = select_one(logits, best)
        if len(steps) > clicks:
            token = select_one(output.tokens, best)[:, 0]
            return (
                steps,
                hint,
                mix_absent(model.obj_ptr_proj(token), present, model.no_obj_ptr),
                output.presence,
            )
        click = correction(hands, truth, select_one(full_size, best) > 0, annotator)
        points = (
            Points(*click)
            if points is None
            else Points(*(torch.cat(pair, 1) for pair in zip(points[:2], click, strict=True)))
        )
