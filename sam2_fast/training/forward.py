"""A clip as training sees it: prompts, corrections, memories, and every step's masks with their gradients (`SAM2Train` upstream).

The modules are those of inference; what differs is here: masks keep their gradients, all of a step's masks are returned, and the simulated
annotator clicks. Frames that are prompted with the true mask give no steps: nothing is learned from them but what they leave in memory.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_fast.config import NO_OBJECT_LOGIT
from sam2_fast.memory import MemoryBank
from sam2_fast.model import Sam2
from sam2_fast.model.mask_decoder import take
from sam2_fast.model.object_pointer import mix_absent
from sam2_fast.tracker import ambiguous
from sam2_fast.training.losses import Step
from sam2_fast.training.simulation import Annotator, Plan, correction, first_prompt
from sam2_fast.types import Features, FrameMemory, Points


def simulate(
    model: Sam2, images: Tensor, truth: Tensor, plan: Plan, rng: np.random.Generator, annotator: Annotator | None = None
) -> list[list[Step]]:
    """The steps of each frame. images: [T, 3, S, S] normalised; truth: [T, N, S, S] bool of N objects; plan: of a clip of T frames.

    `rng` draws what is asked for, torch's generator the places of clicks. Memories of corrected frames count as prompted ones.
    """
    length, size = len(plan.order), model.config.image_size
    if tuple(images.shape) != (length, 3, size, size) or truth.ndim != 4 or (truth.shape[0], *truth.shape[2:]) != (length, size, size):
        wanted = f"{(length, 3, size, size)} and ({length}, N, {size}, {size})"
        raise ValueError(f"images, truth: expected {wanted}, got {tuple(images.shape)} and {tuple(truth.shape)}")
    annotator = annotator or Annotator()
    features = model.encode_image(images)
    banks = [MemoryBank() for _ in range(truth.shape[1])]
    frames: list[list[Step]] = [[] for _ in range(length)]
    for t in plan.order:
        now, prompted = Features(*(x[t : t + 1] for x in features)), t in plan.prompted
        if prompted and not plan.points:
            logits, pointer, presence = model.point_to(now, truth[t][:, None].to(images.dtype))
        else:
            low = model.without_memory(now.low) if prompted else _attend(model, now, banks, t)
            clicks = annotator.clicks if t in plan.corrected else 0
            frames[t], logits, pointer, presence = _interact(model, low, now, truth[t][:, None], prompted, clicks, rng, annotator)
        maps = model.encode_memory(now.low, logits, presence, False)
        for bank, *memory in zip(banks, pointer, presence, maps, strict=True):
            kept = bank.prompted if prompted or t in plan.corrected else bank.tracked
            kept[t] = FrameMemory(*memory)
    return frames


def _attend(model: Sam2, now: Features, banks: list[MemoryBank], t: int) -> Tensor:
    """All objects have memories of the same frames, and so recall the same ones."""
    options = model.options
    recall = banks[0].recall(t, 1, None, model.config.num_maps, options.max_obj_ptrs_in_encoder, 1, options.max_cond_frames_in_attn)
    maps = [[m for f in recall.maps if (m := _remembered(bank, f).map) is not None] for bank in banks]
    pointers = [torch.stack([_remembered(bank, f).pointer for f in recall.pointers]) for bank in banks]
    count = len(banks)
    return model.attend(now.low, maps, [recall.rows] * count, pointers, [recall.ages] * count, recall.longest)


def _remembered(bank: MemoryBank, frame: int) -> FrameMemory:
    memory = bank.get(frame)
    assert memory is not None
    return memory


def _interact(
    model: Sam2, low: Tensor, now: Features, truth: Tensor, prompted: bool, clicks: int, rng: np.random.Generator, annotator: Annotator
) -> tuple[list[Step], Tensor, Tensor, Tensor]:
    """One decode, then one after each correction: the steps, and the last one's logits [N, 1, 4h, 4w], pointer and presence."""
    points = Points(*first_prompt(rng, truth, annotator)) if prompted else None
    nowhere = Points(low.new_zeros(len(truth), 1, 2), torch.full((len(truth), 1), -1, dtype=torch.int32, device=low.device))
    hint: Tensor | None = None
    steps: list[Step] = []
    while True:
        multimask = ambiguous(model.options, 0 if points is None else points.labels.shape[1], prompted)
        found = model.decode(low, now, points or nowhere, hint, multimask)
        present = found.presence > 0
        logits = torch.where(present[:, None, None], found.logits, NO_OBJECT_LOGIT)
        fine = F.interpolate(logits, size=tuple(truth.shape[2:]), mode="bilinear", align_corners=False)
        steps.append(Step(fine, found.iou, found.presence))
        best = found.iou.argmax(-1)
        hint = take(logits, best)
        if len(steps) > clicks:
            token = take(found.tokens, best)[:, 0]
            return steps, hint, mix_absent(model.obj_ptr_proj(token), present, model.no_obj_ptr), found.presence
        more = correction(rng, truth, take(fine, best) > 0, annotator)
        points = Points(*more) if points is None else Points(*(torch.cat(pair, 1) for pair in zip(points[:2], more, strict=True)))
