"""Rules of the ops in this package. Ops that are not listed are told apart by `any_configuration`.

Numbers of images, objects, prompts and memories are no part of a configuration, and sizes of
pictures count in powers of two: a session proves a kernel once, not for each picture.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_fast.proving.rules import Call, Rule, bits, declare

MEMORIES = 7
"""Maps of an object in a proof of memory attention: as many as the released models recall."""
_FEW, _SOME = 2, 16


def _block(x: Tensor, weights: Sequence[Tensor], num_heads: int, window: int, pool: bool, *_: Any) -> Hashable:
    out, hidden = weights[5].shape[0], weights[9].shape[0]
    dtypes = x.dtype, weights[0].dtype, weights[2].dtype
    return *x.shape[1:], out, hidden, num_heads, window, pool, *dtypes


def _window(qkv: Tensor, pad: Tensor, num_heads: int, window: int, pool: bool = False) -> Hashable:
    return *qkv.shape[1:], num_heads, window, pool, qkv.dtype, pad.dtype


def _rope(q: Tensor, k: Tensor, v: Tensor, table: Tensor, num_unrotated: int = 0) -> Hashable:
    keys = bits(k.shape[1])
    return *q.shape[1:], keys, v.shape[2], num_unrotated > 0, q.dtype, table.dtype


def _sample_first(count: int) -> Callable[[Call], Call]:
    """The first images or objects, for ops whose first `count` arguments are batches."""

    def sample(call: Call) -> Call:
        batch, rest = call.arguments[:count], call.arguments[count:]
        return Call((*(x[:_FEW] for x in batch), *rest), call.named)

    return sample


def _attention(x: Tensor, weights: Sequence[Tensor], *_: Any) -> Hashable:
    return attention_configuration(
        tuple(x.shape[1:]),
        x.dtype,
        weights[2].dtype,
        len(weights) // 26,
        weights[14].shape[1],
        weights[22].shape[0],
    )


def attention_configuration(
    tokens: tuple[int, ...],
    dtype: torch.dtype,
    stored: torch.dtype,
    layers: int,
    narrow: int,
    hidden: int,
) -> Hashable:
    """Of memory attention. tokens: (N, C); narrow: channels of a memory; hidden: of the MLP."""
    return *tokens, layers, narrow, hidden, dtype, stored


def _attention_sample(call: Call) -> Call:
    """One object, or the first two: each with `MEMORIES` maps or more, as later in a video."""
    x, weights, table, memories, temporal, place = call.arguments
    count = min(len(memories.first) - 1, _FEW)
    remembered = _joined(memories, [(o, True) for o in range(count)])
    return Call((x[:count], weights, table, remembered, temporal, place), call.named)


def _attention_more(call: Call) -> list[Call]:
    """One frame and two objects that remember differently much."""
    x, weights, table, memories, temporal, place = call.arguments
    two = _joined(memories, [(0, False), (0, True)])
    return [Call((x[:1], weights, table, two, temporal, place), call.named)]


def _joined(memories: Any, objects: Sequence[tuple[int, bool]]) -> Any:
    """Memories of some objects, given by their numbers, and whether each one's maps are repeated
    until it has `MEMORIES` of them."""
    slots: list[int] = []
    rows: list[int] = []
    ends, ends_pointer, loose = [0], [0], []
    for number, filled in objects:
        own = slice(memories.first[number], memories.first[number + 1])
        times = -(-MEMORIES // (own.stop - own.start)) if filled and own.stop > own.start else 1
        slots += list(memories.slots[own]) * times
        rows += list(memories.rows[own]) * times
        ends.append(len(slots))
        loose.append(slice(memories.first_pointer[number], memories.first_pointer[number + 1]))
        ends_pointer.append(ends_pointer[-1] + loose[-1].stop - loose[-1].start)
    return memories._replace(
        slots=slots,
        rows=rows,
        first=ends,
        pointers=torch.cat([memories.pointers[one] for one in loose]),
        positions=torch.cat([memories.positions[one] for one in loose]),
        first_pointer=ends_pointer,
    )


def _encoder(low: Tensor, logits: Tensor, weights: Sequence[Tensor], binarize: bool, *_: Any) -> Hashable:
    resized = tuple(logits.shape[1:]) != tuple(16 * n for n in low.shape[1:3])
    widths = tuple(weights[i].shape[0] for i in (0, 4, 8, 12, -2))
    dtypes = low.dtype, logits.dtype, weights[0].dtype, weights[8].dtype
    return *low.shape[1:], *widths, len(weights), resized, binarize, *dtypes


def _decoder(
    image: Tensor,
    mid: Tensor,
    high: Tensor,
    position: Tensor,
    prompts: Tensor,
    present: Tensor | None,
    weights: Sequence[Tensor],
    num_heads: int,
    *tokens: Any,
) -> Hashable:
    options = bits(prompts.shape[1] - 1), present is None, len(weights), num_heads, tokens
    return *image.shape[1:], *options, image.dtype, prompts.dtype, weights[0].dtype


def _decoder_sample(call: Call) -> Call:
    image, mid, high, position, prompts, present, *rest = call.arguments
    few = (x[:4] for x in (image, mid, high))
    kept = None if present is None else present[:4]
    return Call((*few, position, prompts[:4], kept, *rest), call.named)


def _decoder_align(call: Call, results: tuple[Any, ...]) -> tuple[Any, ...]:
    """Tokens that are not present may become anything; where the best mask is drawn, rounding may
    decide between two that are equally good."""
    present, weights, _, first_mask, iou_token, best = call.arguments[5:11]
    if present is not None:
        results = tuple((m, i, t.where(present[..., None], 0)) for m, i, t in results)
    if not best:
        return results
    start, masks = first_mask - iou_token - 1, (len(weights) - 94) // 6
    choices = [iou[:, start : start + masks].argmax(-1) for _, iou, _ in results]
    same = torch.stack([choice == choices[0] for choice in choices]).all(0)
    return tuple((logits[same], iou, tokens) for logits, iou, tokens in results)


def _heads(
    logits: Tensor,
    iou: Tensor,
    tokens: Tensor,
    weights: Sequence[Tensor],
    absent_pointer: Tensor,
    first_mask_token: int,
    best: bool,
    *_: Any,
) -> Hashable:
    widths = iou.shape[1], tokens.shape[2], weights[0].shape[0], weights[6].shape[0]
    dtypes = logits.dtype, tokens.dtype, weights[0].dtype, absent_pointer.dtype
    return *logits.shape[1:], *widths, bits(tokens.shape[1] - 1), first_mask_token, best, *dtypes


def _heads_align(call: Call, results: tuple[Any, ...]) -> tuple[Any, ...]:
    """Whether an object is there is a sign: where rounding decides it, its mask says nothing."""
    del call
    signs = [presence[:, 0] > 0 for _, _, presence in results]
    same = torch.stack([sign == signs[0] for sign in signs]).all(0)
    return tuple((mask[same], pointer[same], presence) for mask, pointer, presence in results)


def _masks(masks: Tensor, *_: Any) -> Hashable:
    return masks.dtype, bits(masks.shape[1] * masks.shape[2])


def _masks_sample(call: Call) -> Call:
    """The first masks, and one of many tangled components: real masks may be empty."""
    masks, *rest = call.arguments
    count = masks.shape[1] * masks.shape[2]
    index = torch.arange(count, device=masks.device)
    tangled = ((index * 40503 % 65537) % 5 < 3).view(1, *masks.shape[1:]).to(masks.dtype)
    return Call((torch.cat([masks[:_FEW], tangled]), *rest), call.named)


def _small(masks: Tensor, max_area: int) -> Hashable:
    return *_masks(masks), bits(max_area)  # type: ignore[misc]


def _postprocess(
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


def _postprocess_sample(call: Call) -> Call:
    if call.named.get("keep") is not None or call.named.get("which") is not None:
        return call  # what they say is about all masks
    logits, *rest = call.arguments
    return Call((logits[:_SOME], *rest), call.named)


def _boxes(boxes: Tensor, idxs: Tensor, alive: Tensor, threshold: float) -> Hashable:
    return bits(len(boxes)), idxs.dtype


def _picture(picture: Tensor, size: int, *_: Any) -> Hashable:
    height, width = picture.shape[-3:-1]
    return bits(height * width), size, height > size, width > size, picture.dtype


def _exact_frame(frame: Tensor, size: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    from sam2_fast.ops.preprocess import resize_bicubic_reference

    return _normalized(resize_bicubic_reference(frame, size).permute(2, 0, 1), mean, std)


def _exact_images(images: Tensor, size: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    planes = images.permute(0, 3, 1, 2).contiguous().double()
    if planes.shape[2:] != (size, size):
        planes = F.interpolate(planes, (size, size), mode="bilinear", antialias=True)
    scale = 1.0 if images.dtype == torch.uint8 else 255.0
    return _normalized(planes * scale, mean, std)


def _normalized(planes: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    means, deviations = (torch.tensor(list(values), dtype=torch.float32, device=planes.device).double() for values in (mean, std))
    return (planes.double() / 255 - means[:, None, None]) / deviations[:, None, None]


for _op, _rule in {
    "hiera_block": Rule(_block, _sample_first(1)),
    "window_attention": Rule(_window, _sample_first(1)),
    "rope_attention": Rule(_rope, _sample_first(3)),
    "memory_attention": Rule(_attention, _attention_sample, _attention_more),
    "memory_encoder": Rule(_encoder, _sample_first(2), convolutions=True),
    "mask_decoder": Rule(_decoder, _decoder_sample, align=_decoder_align),
    "object_heads": Rule(_heads, _sample_first(3), align=_heads_align),
    "connected_components": Rule(_masks, _masks_sample),
    "small_components": Rule(_small, _masks_sample),
    "mask_postprocess": Rule(_postprocess, _postprocess_sample),
    "nms": Rule(_boxes),
    "preprocess_images": Rule(_picture, _sample_first(1), exact=_exact_images),
    "preprocess_frame": Rule(_picture, exact=_exact_frame),
    "resize_bicubic": Rule(_picture),
}.items():
    declare(_op, _rule)
