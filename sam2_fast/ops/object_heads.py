"""What a tracked frame keeps of the mask decoder's results, as one op: a mask, an object pointer, and whether the object is there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sam2_fast.ops.core.cache import derive
from sam2_fast.ops.core.native import is_plain, no_triton, wants_gradients
from sam2_fast.ops.core.registry import Implementation, execute, register
from sam2_fast.ops.mask_decoder.reference import HEAD, taken, three_layers
from sam2_fast.ops.memory_attention.table import products_dtype

_MOST_HIDDEN = 256


def object_heads(
    logits: Tensor,
    iou: Tensor,
    tokens: Tensor,
    weights: Sequence[Tensor],
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

    logits: [B, M, H, W]; iou: [B, K]; tokens: [B, T, C], of which token 0 says whether the object is there, and whose tokens from 2
        on are the masks', with the predicted IoU of token 2 + k in iou[:, k]; first_mask_token: the token of the first mask of
        `logits`. best: M = 1 and it is the mask of highest predicted IoU among all from first_mask_token on: its token becomes the
        pointer; else that of first_mask_token.
    With M > 1 the first mask is kept where it is stable, else the one of highest predicted IoU among the others. Stable: of the pixels
        with logits above -delta (none: stable), at least `threshold` have logits above delta.
    weights: matrix and bias of three linear layers with ReLU between, C -> H -> H -> 1 of presence, then C -> H -> H -> C of the
        pointer. Where the presence logit is not above zero, the mask is `absent_logit` throughout and the pointer is absent_pointer
        [1, C].
    backend: "auto", "triton" or "torch". Raises ValueError for shapes that do not fit, BackendError where the named backend cannot run.
    Source: official `_forward_sam_heads`, `_dynamic_multimask_via_stability`.
    """
    _check(logits, iou, tokens, weights, absent_pointer, first_mask_token, best)
    arguments = (logits, iou, tokens, weights, absent_pointer, first_mask_token, best, delta, threshold, absent_logit)
    mask, pointer, presence = execute("object_heads", backend, (logits, iou, tokens, *weights, absent_pointer), *arguments)
    return mask, pointer, presence


def _check(
    logits: Tensor, iou: Tensor, tokens: Tensor, weights: Sequence[Tensor], absent_pointer: Tensor, first_mask_token: int, best: bool
) -> None:
    if logits.ndim != 4 or iou.ndim != 2 or tokens.ndim != 3 or not len(logits) == len(iou) == len(tokens):
        found = ", ".join(str(tuple(x.shape)) for x in (logits, iou, tokens))
        raise ValueError(f"logits, iou, tokens: expected [B, M, H, W], [B, K] and [B, T, C], got {found}")
    masks, dim, first = logits.shape[1], tokens.shape[2], first_mask_token - 2
    if not 0 <= first < iou.shape[1] or 2 + iou.shape[1] > tokens.shape[1] or first + masks > iou.shape[1] or masks < 1:
        wanted = f"one of {iou.shape[1]} from 2 on for {masks} masks and {tokens.shape[1]} tokens"
        raise ValueError(f"first_mask_token: expected {wanted}, got {first_mask_token}")
    if best and masks != 1:
        raise ValueError(f"logits: expected the best mask alone, got {masks}")
    if len(weights) != 2 * HEAD:
        raise ValueError(f"weights: expected {2 * HEAD} tensors, got {len(weights)}")
    shapes: list[tuple[int, ...]] = []
    for i, outs in ((0, 1), (HEAD, dim)):
        hidden = weights[i].shape[0]
        shapes += [(hidden, dim), (hidden,), (hidden, hidden), (hidden,), (outs, hidden), (outs,)]
    for i, (weight, shape) in enumerate(zip((*weights, absent_pointer), (*shapes, (1, dim)), strict=True)):
        if tuple(weight.shape) != shape:
            raise ValueError(f"weights: tensor {i} of {2 * HEAD} and absent_pointer: expected shape {shape}, got {tuple(weight.shape)}")


def stable_or_best(logits: Tensor, iou: Tensor, delta: float, threshold: float) -> tuple[Tensor, Tensor]:
    """The first mask where it is stable, else the other one of highest predicted IoU.

    logits: [B, M, H, W]; iou: [B, M] -> [B, 1, H, W], [B, 1]. Source: official `_dynamic_multimask_via_stability`.
    """
    single = logits[:, 0].flatten(1)
    inner, outer = (single > delta).sum(-1).float(), (single > -delta).sum(-1).float()
    stable = torch.where(outer > 0, inner / outer, 1.0) >= threshold
    choice = torch.where(stable, 0, 1 + iou[:, 1:].argmax(-1))
    return taken(logits, choice), taken(iou, choice)


def mix_absent(pointer: Tensor, present: Tensor, absent: Tensor) -> Tensor:
    """pointer: [B, C]; present: [B, 1] bool; absent: [1, C] -> [B, C], the learned constant where the object is gone."""
    share = present.to(pointer.dtype)
    return share * pointer + (1 - share) * absent


def object_heads_reference(
    logits: Tensor,
    iou: Tensor,
    tokens: Tensor,
    weights: Sequence[Tensor],
    absent_pointer: Tensor,
    first_mask_token: int,
    best: bool,
    delta: float,
    threshold: float,
    absent_logit: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The definition, in torch."""
    presence = three_layers(tokens[:, 0], weights[:HEAD])
    first, masks = first_mask_token - 2, logits.shape[1]
    if masks > 1:
        logits, _ = stable_or_best(logits, iou[:, first : first + masks], delta, threshold)
    token = tokens[:, first_mask_token]
    if best:
        candidates = tokens[:, first_mask_token : 2 + iou.shape[1]]
        token = taken(candidates, iou[:, first:].argmax(-1))[:, 0]
    present = presence > 0
    mask = torch.where(present[:, None, None], logits, absent_logit)
    return mask, mix_absent(three_layers(token, weights[HEAD:]), present, absent_pointer), presence


def _triton_heads(
    logits: Tensor,
    iou: Tensor,
    tokens: Tensor,
    weights: Sequence[Tensor],
    absent_pointer: Tensor,
    first_mask_token: int,
    best: bool,
    delta: float,
    threshold: float,
    absent_logit: float,
) -> tuple[Tensor, Tensor, Tensor]:
    from sam2_fast.kernels.object_heads import object_state, tracked

    dtype = products_dtype(weights[0])
    with torch.no_grad():
        w = derive(
            weights, f"object_heads {dtype}", lambda: [t.detach().to(dtype if t.ndim == 2 else t.dtype).contiguous() for t in weights]
        )
        given = [t.detach().contiguous() for t in (logits, iou, tokens)]
        presence, pointer, counts = object_state(*given, w, first_mask_token, best, delta, dtype)
        constant = absent_pointer.detach().contiguous()
        pointers = torch.promote_types(dtype, absent_pointer.dtype)
        mask, pointer = tracked(*given[:2], presence, pointer, counts, constant, first_mask_token, threshold, absent_logit, pointers)
        return mask, pointer, presence


def _refuses(
    logits: Tensor,
    iou: Tensor,
    tokens: Tensor,
    weights: Sequence[Tensor],
    absent_pointer: Tensor,
    first_mask_token: int,
    best: bool,
    delta: float,
    threshold: float,
    absent_logit: float,
) -> str | None:
    tensors = (logits, iou, tokens, *weights, absent_pointer)
    if any(t.device.type != "cuda" for t in tensors) or len({t.device for t in tensors}) > 1:
        return f"tensors are on {', '.join(sorted({str(t.device) for t in tensors}))}, it takes those of one cuda device"
    if not is_plain(*tensors):
        return f"tensors are {', '.join(sorted({type(t).__name__ for t in tensors}))}, it takes plain tensors"
    if wants_gradients(*tensors):
        return "gradients are wanted, it has none"
    if (dtype := products_dtype(weights[0])) not in (torch.bfloat16, torch.float16) or logits.dtype == torch.float64:
        return f"products are in {dtype}, logits are {logits.dtype}: it takes bfloat16 or float16, and float32 or narrower"
    hidden, dim = [weights[0].shape[0], weights[HEAD].shape[0]], tokens.shape[2]
    if dim not in (128, 256) or max(hidden) > _MOST_HIDDEN:
        return f"{dim} channels, hidden widths {hidden}: it takes 128 or 256 channels and widths up to {_MOST_HIDDEN}"
    return "there is no object or pixel, it wants one" if 0 in logits.shape else None


register(Implementation("object_heads", "triton", _triton_heads, _refuses), no_triton)
register(Implementation("object_heads", "torch", object_heads_reference, lambda *_: None), lambda: None)
