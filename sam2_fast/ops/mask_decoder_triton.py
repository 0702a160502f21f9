"""The mask decoder on a GPU: five passes over the image, one that upscales and predicts masks, and between
them the prompt tokens' own layers (docs/kernels/mask_decoder.md)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from sam2_fast.ops.mask_decoder_reference import BODY, EPS, HEAD, MAP_EPS
from sam2_fast.ops.memory_table import products_dtype
from sam2_fast.ops.native import is_plain, wants_gradients
from sam2_fast.ops.weights import derive

_MOST_TOKENS, _MOST_HEADS, _MOST_HEAD_CHANNELS, _LEAST_ROWS = 64, 8, 128, 32


def triton_decoder(
    image: Tensor,
    mid: Tensor,
    high: Tensor,
    position: Tensor,
    prompts: Tensor,
    present: Tensor | None,
    weights: Sequence[Tensor],
    num_heads: int,
    first_mask_token: int,
    iou_token: int,
    best: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `mask_decoder`, without gradients."""
    from sam2_fast.kernels.decoder_heads import token_heads, token_to_image_output
    from sam2_fast.kernels.decoder_mlp import token_mlp
    from sam2_fast.kernels.decoder_tokens import Pending, token_step
    from sam2_fast.kernels.mask_decoder import image_to_token_attention, token_to_image_attention
    from sam2_fast.kernels.mask_prediction import upscale_and_predict_masks

    dtype = products_dtype(weights[0])
    stream = torch.float32 if torch.is_autocast_enabled(image.device.type) else image.dtype
    with torch.no_grad():
        w = derive(weights, f"mask_decoder {dtype}", lambda: _matrices(weights, dtype))
        pixels, place = image.detach().flatten(1, 2).contiguous(), position.detach().to(image.dtype).contiguous()
        prompts, count = _rows_contiguous(prompts.detach()), prompts.shape[1]
        present = None if present is None else present.contiguous().view(torch.uint8)  # the interpreter knows no bool
        rows = max(1 << (count - 1).bit_length(), _LEAST_ROWS // num_heads)
        step = partial(token_step, prompts, present, heads=num_heads, rows=rows, eps=EPS)
        now = step(None, self_attention=w[:7])
        before = None
        for i in range(2):
            v, last = w[36 * i : 36 * i + 36], i == 1
            now = step(Pending(now.self_parts, v[7], before, *v[8:10]), to_image=v[10:13])
            spans = token_to_image_attention(pixels, place, now.queries, num_heads)
            found = token_to_image_output(spans, v[14:17], num_heads, count)
            before, parts = token_mlp(Pending(found, v[17], now.tokens, *v[18:20]), v[20:23], EPS)
            attention = {"to_image": w[72:75]} if last else {"self_attention": w[36:43]}
            now = step(Pending(parts, v[23], before, *v[24:26]), to_token=v[28:35], **attention)
            before = now.tokens
            pixels = image_to_token_attention(pixels, place, now.to_token, num_heads, (v[35], v[26], v[27]), EPS, stream)
        v = w[72:BODY]
        spans = token_to_image_attention(pixels, place, now.queries, num_heads)
        found = token_to_image_output(spans, v[4:7], num_heads, count)
        pending = Pending(found, v[7], before, *v[8:10])
        iou, hyper, tokens = token_heads(pending, present, w[BODY:], first_mask_token, iou_token, EPS, prompts.dtype)
        maps = (x.detach().contiguous() for x in (mid, high))
        which = {"iou": iou, "first_value": first_mask_token - iou_token - 1} if best else {}
        logits = upscale_and_predict_masks(pixels, image.shape[2], *maps, tuple(v[10:16]), hyper, MAP_EPS, **which)
        return logits, iou, tokens


def _matrices(weights: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """`weights` as the kernels have them: matrices in `dtype`; after the head of predicted IoU, each layer of all masks together."""
    w = [t.detach().to(dtype) if t.ndim == 2 else t.detach() for t in weights]
    masks = [torch.stack(w[BODY + HEAD + i :: HEAD]) for i in range(HEAD)]
    return [t.contiguous() for t in (*w[: BODY + HEAD], *masks)]


def _rows_contiguous(prompts: Tensor) -> Tensor:
    """[B, T, C] with tokens that lie together; objects may share them."""
    return prompts if prompts.stride()[1:] == (prompts.shape[2], 1) else prompts.contiguous()


def triton_refuses(
    image: Tensor,
    mid: Tensor,
    high: Tensor,
    position: Tensor,
    prompts: Tensor,
    present: Tensor | None,
    weights: Sequence[Tensor],
    num_heads: int,
    first_mask_token: int,
    iou_token: int,
    best: bool,
) -> str | None:
    """Why it cannot run, or None."""
    tensors = [image, mid, high, position, prompts, *weights, *([] if present is None else [present])]
    if any(t.device.type != "cuda" for t in tensors) or len({t.device for t in tensors}) > 1:
        return f"tensors are on {', '.join(sorted({str(t.device) for t in tensors}))}, it takes those of one cuda device"
    if not is_plain(*tensors):
        return f"tensors are {', '.join(sorted({type(t).__name__ for t in tensors}))}, it takes plain tensors"
    if wants_gradients(*tensors):
        return "gradients are wanted, it has none"
    if (dtype := products_dtype(weights[0])) not in (torch.bfloat16, torch.float16):
        return f"products are in {dtype}, it takes bfloat16 or float16"
    dim, tokens = image.shape[3], prompts.shape[1]
    if dim not in (128, 256) or num_heads & (num_heads - 1) or num_heads > _MOST_HEADS or tokens > _MOST_TOKENS:
        wanted = f"128 or 256 channels, 1, 2, 4 or 8 heads, up to {_MOST_TOKENS} tokens"
        return f"{dim} channels, {num_heads} heads, {tokens} tokens: it takes {wanted}"
    if dim // num_heads > _MOST_HEAD_CHANNELS:
        return f"{dim} channels in {num_heads} heads: it takes up to {_MOST_HEAD_CHANNELS} channels a head"
    if 0 in prompts.shape[:2] or 0 in image.shape:
        return "there is no object, token or image token, it wants one"
    return None
