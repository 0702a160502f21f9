"""The state of an object in a tracked frame, as one op on the results of the mask decoder.

It is a mask, an object pointer, and the logit of the object's presence.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from sam2_fast.ops.core.autocast import compute_dtype
from sam2_fast.ops.core.cache import derive, for_gpu
from sam2_fast.ops.core.op import Backend, Op
from sam2_fast.ops.core.requirements import HALF, computes_in, fits, no_grad, on_one, plain
from sam2_fast.ops.mask_decoder.reference import select_one, three_layers
from sam2_fast.ops.mask_decoder.weights import ObjectHeadsWeights as ObjectHeadsWeights
from sam2_fast.proving.rules import Call, Rule, bits, first_rows

__all__ = ["ObjectHeadsWeights", "object_heads"]

_MAX_HIDDEN = 256


def object_heads(
    logits: Tensor,
    iou: Tensor,
    tokens: Tensor,
    weights: ObjectHeadsWeights,
    absent_pointer: Tensor,
    first_mask_token: int,
    best: bool,
    delta: float,
    threshold: float,
    absent_logit: float,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Masks [B, 1, H, W] float32, pointers [B, C] and presence logits [B, 1] of B objects.

    logits: [B, M, H, W]; iou: [B, K]; tokens: [B, T, C]. Token 0 is that of the presence; tokens
        from 2 on are those of masks, and iou[:, k] is the predicted IoU of token 2 + k.
    first_mask_token: the token of the first mask in `logits`.
    best: M = 1, and the mask is the one of highest predicted IoU among all masks from
        first_mask_token on. The pointer comes from its token; otherwise from first_mask_token.
    With M > 1, the result is the first mask if it is stable, else the one of highest predicted IoU
        among the others. Stable: of the pixels with logits above -delta, at least the share
        `threshold` have logits above delta, or there are no such pixels.
    If the presence logit is not above zero, all logits of the mask are `absent_logit` and the
        pointer is absent_pointer [1, C].
    backend: "auto", "triton" or "torch". Raises ValueError for shapes that do not fit, BackendError
    if the named backend cannot run.
    Source: official `_forward_sam_heads`, `_dynamic_multimask_via_stability`.
    """
    _check(logits, iou, tokens, weights, absent_pointer, first_mask_token, best)
    tensors = logits, iou, tokens, weights, absent_pointer
    numbers = first_mask_token, best, delta, threshold, absent_logit
    mask, pointer, presence = _OP(backend, *tensors, *numbers)
    return mask, pointer, presence


def _check(
    logits: Tensor,
    iou: Tensor,
    tokens: Tensor,
    weights: ObjectHeadsWeights,
    absent_pointer: Tensor,
    first_mask_token: int,
    best: bool,
) -> None:
    fitting = logits.ndim == 4 and iou.ndim == 2 and tokens.ndim == 3
    if not fitting or not len(logits) == len(iou) == len(tokens):
        shapes = ", ".join(str(tuple(x.shape)) for x in (logits, iou, tokens))
        raise ValueError(
            f"logits, iou, tokens: expected [B, M, H, W], [B, K] and [B, T, C], got {shapes}"
        )
    masks = logits.shape[1]
    dim = tokens.shape[2]
    first = first_mask_token - 2
    values = iou.shape[1]
    is_in_range = 0 <= first < values and 2 + values <= tokens.shape[1]
    if not is_in_range or first + masks > values or masks < 1:
        raise ValueError(
            f"first_mask_token: expected one of {values} from 2 on for {masks} masks and "
            f"{tokens.shape[1]} tokens, got {first_mask_token}"
        )
    if best and masks != 1:
        raise ValueError(f"logits: expected the best mask only, got {masks} masks")
    expected = weights.pointer.linear3.bias.shape[0]
    if dim != expected:
        raise ValueError(f"tokens: expected the {expected} channels of the weights, got {dim}")
    if tuple(absent_pointer.shape) != (1, dim):
        raise ValueError(
            f"absent_pointer: expected shape {(1, dim)}, got {tuple(absent_pointer.shape)}"
        )


def stable_or_best(
    logits: Tensor, iou: Tensor, delta: float, threshold: float
) -> tuple[Tensor, Tensor]:
    """The first mask if it is stable, else the one of highest predicted IoU among the others.

    logits: [B, M, H, W]; iou: [B, M] -> [B, 1, H, W], [B, 1]. Source: official
    `_dynamic_multimask_via_stability`.
    """
    single = logits[:, 0].flatten(1)
    inner, outer = (single > delta).sum(-1).float(), (single > -delta).sum(-1).float()
    stable = torch.where(outer > 0, inner / outer, 1.0) >= threshold
    choice = torch.where(stable, 0, 1 + iou[:, 1:].argmax(-1))
    return select_one(logits, choice), select_one(iou, choice)


def mix_absent(pointer: Tensor, present: Tensor, absent: Tensor) -> Tensor:
    """The pointers of present objects, and the learned `absent` for the others: [B, C].

    pointer: [B, C]; present: [B, 1] bool; absent: [1, C].
    """
    share = present.to(pointer.dtype)
    return share * pointer + (1 - share) * absent


def object_heads_reference(
    logits: Tensor,
    iou: Tensor,
    tokens: Tensor,
    weights: ObjectHeadsWeights,
    absent_pointer: Tensor,
    first_mask_token: int,
    best: bool,
    delta: float,
    threshold: float,
    absent_logit: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The definition, in torch."""
    presence = three_layers(tokens[:, 0], weights.presence)
    first = first_mask_token - 2
    masks = logits.shape[1]
    if masks > 1:
        logits, _ = stable_or_best(logits, iou[:, first : first + masks], delta, threshold)
    token = tokens[:, first_mask_token]
    if best:
        candidates = tokens[:, first_mask_token : 2 + iou.shape[1]]
        token = select_one(candidates, iou[:, first:].argmax(-1))[:, 0]
    present = presence > 0
    mask = torch.where(present[:, None, None], logits, absent_logit)
    pointer = mix_absent(three_layers(token, weights.pointer), present, absent_pointer)
    return mask, pointer, presence


def _triton_heads(
    logits: Tensor,
    iou: Tensor,
    tokens: Tensor,
    weights: ObjectHeadsWeights,
    absent_pointer: Tensor,
    first_mask_token: int,
    best: bool,
    delta: float,
    threshold: float,
    absent_logit: float,
) -> tuple[Tensor, Tensor, Tensor]:
    from sam2_fast.kernels.object_heads import object_state, select_mask

    dtype = compute_dtype(weights.first_matrix)
    with torch.no_grad():
        w = derive(weights, f"triton {dtype}", lambda: for_gpu(weights, dtype).flatten())
        logits, iou, tokens = (t.detach().contiguous() for t in (logits, iou, tokens))
        presence, pointer, counts = object_state(
            logits, iou, tokens, w, first_mask_token, best, delta, dtype
        )
        mask, pointer = select_mask(
            logits,
            iou,
            presence,
            pointer,
            counts,
            absent_pointer.detach().contiguous(),
            first_mask_token,
            threshold,
            absent_logit,
            torch.promote_types(dtype, absent_pointer.dtype),
        )
        return mask, pointer, presence


def _refuses(
    logits: Tensor, iou: Tensor, tokens: Tensor, weights: ObjectHeadsWeights, *_: object
) -> str | None:
    if logits.dtype == torch.float64:
        return f"logits are {logits.dtype}; supported: float32, bfloat16, float16"
    heads = (weights.presence, weights.pointer)
    dim = tokens.shape[2]
    hidden = [head.linear1.bias.shape[0] for head in heads]
    if dim not in (128, 256) or max(hidden) > _MAX_HIDDEN:
        return (
            f"tokens have {dim} channels, the heads {hidden} hidden ones; supported: 128 or 256, "
            f"hidden ones up to {_MAX_HIDDEN}"
        )
    return "at least one object and one pixel are required" if 0 in logits.shape else None


def _configuration(
    logits: Tensor,
    iou: Tensor,
    tokens: Tensor,
    weights: ObjectHeadsWeights,
    absent_pointer: Tensor,
    first_mask_token: int,
    best: bool,
    *_: Any,
) -> Hashable:
    presence, pointer = weights.presence.linear1, weights.pointer.linear1
    widths = iou.shape[1], tokens.shape[2], presence.bias.shape[0], pointer.bias.shape[0]
    dtypes = logits.dtype, tokens.dtype, presence.weight.dtype, absent_pointer.dtype
    count = bits(tokens.shape[1] - 1)
    return *logits.shape[1:], *widths, count, first_mask_token, best, *dtypes


def _align(call: Call, results: tuple[Any, ...]) -> tuple[Any, ...]:
    """The comparable part of results, in equal shapes.

    Rounding may decide the sign of the presence, and so the mask and the pointer: they are compared
    for objects with equal signs only.
    """
    del call
    signs = [presence[:, 0] > 0 for _, _, presence in results]
    same = torch.stack([sign == signs[0] for sign in signs]).all(0)
    return tuple((mask[same], pointer[same], presence) for mask, pointer, presence in results)


_OP = Op(
    "object_heads",
    weights=ObjectHeadsWeights,
    reference=object_heads_reference,
    backends=(
        Backend(
            "triton",
            _triton_heads,
            (
                on_one("cuda"),
                plain,
                no_grad,
                computes_in(*HALF),
                fits(_refuses),
            ),
            kernels=("object_state", "select_mask"),
        ),
    ),
    rule=Rule(_configuration, first_rows(3), align=_align),
)
