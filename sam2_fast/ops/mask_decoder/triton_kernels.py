"""The mask decoder on a GPU: five passes over the image, one that upscales and predicts masks, and
between them the prompt tokens' own layers (docs/kernels/mask_decoder.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sam2_fast.ops.core.autocast import compute_dtype
from sam2_fast.ops.core.cache import derive, for_gpu
from sam2_fast.ops.mask_decoder.reference import EPS, MAP_EPS, cell_matrix
from sam2_fast.ops.mask_decoder.weights import AttentionWeights, MaskDecoderWeights

if TYPE_CHECKING:
    from sam2_fast.kernels.decoder_tokens import Projections

_MOST_TOKENS, _MOST_HEADS, _MOST_HEAD_CHANNELS, _LEAST_ROWS = 64, 8, 128, 32


def triton_decoder(
    image: Tensor,
    mid: Tensor,
    high: Tensor,
    position: Tensor,
    prompts: Tensor,
    present: Tensor | None,
    weights: MaskDecoderWeights,
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

    dtype = compute_dtype(weights.first_matrix)
    stream = torch.float32 if torch.is_autocast_enabled(image.device.type) else image.dtype
    with torch.no_grad():
        w = derive(weights, f"triton {dtype}", lambda: _prepared(weights, dtype))
        pixels = image.detach().flatten(1, 2).contiguous()
        place = position.detach().to(image.dtype).contiguous()
        prompts, count = _rows_contiguous(prompts.detach()), prompts.shape[1]
        if present is not None:
            present = present.contiguous().view(torch.uint8)  # the interpreter knows no bool
        rows = max(1 << (count - 1).bit_length(), _LEAST_ROWS // num_heads)
        step = partial(token_step, prompts, present, heads=num_heads, rows=rows, eps=EPS)
        first, second = w.named.layers
        now = step(None, self_attention=_projections(first.self_attention))
        before = None
        for layer, following in ((first, second), (second, None)):
            norm, bias = layer.norm1, layer.self_attention.out.bias
            pending = Pending(now.self_parts, bias, before, norm.weight, norm.bias)
            now = step(pending, to_image=_queries(layer.token_to_image))
            spans = token_to_image_attention(pixels, place, now.queries, num_heads)
            values = _values(layer.token_to_image)
            attended = token_to_image_output(spans, values, num_heads, count)
            norm, bias = layer.norm2, layer.token_to_image.out.bias
            pending = Pending(attended, bias, now.tokens, norm.weight, norm.bias)
            fc1, fc2 = layer.fc1, layer.fc2
            before, parts = token_mlp(pending, (fc1.weight, fc1.bias, fc2.weight), EPS)
            pending = Pending(parts, fc2.bias, before, layer.norm3.weight, layer.norm3.bias)
            if following is None:
                attention = {"to_image": _queries(w.named.final_attention)}
            else:
                attention = {"self_attention": _projections(following.self_attention)}
            now = step(pending, to_token=_projections(layer.image_to_token), **attention)
            before = now.tokens
            rest = layer.image_to_token.out.bias, layer.norm4.weight, layer.norm4.bias
            pixels = image_to_token_attention(
                pixels, place, now.to_token, num_heads, rest, EPS, stream
            )
        last, norm = w.named.final_attention, w.named.final_norm
        spans = token_to_image_attention(pixels, place, now.queries, num_heads)
        attended = token_to_image_output(spans, _values(last), num_heads, count)
        pending = Pending(attended, last.out.bias, before, norm.weight, norm.bias)
        iou, outputs, tokens = token_heads(
            pending, present, w.heads, first_mask_token, iou_token, EPS, prompts.dtype
        )
        maps = (x.detach().contiguous() for x in (mid, high))
        which = {"iou": iou, "first_value": first_mask_token - iou_token - 1} if best else {}
        logits = upscale_and_predict_masks(
            pixels, image.shape[2], *maps, w.upscaling, outputs, MAP_EPS, **which
        )
        return logits, iou, tokens


@dataclass(frozen=True)
class _Prepared:
    """What the kernels read."""

    named: MaskDecoderWeights
    upscaling: tuple[Tensor, ...]  # matrix and bias, norm, matrix and bias
    heads: tuple[Tensor, ...]  # matrix and bias thrice for IoU; thrice for all masks together


def _prepared(weights: MaskDecoderWeights, dtype: torch.dtype) -> _Prepared:
    w = for_gpu(weights, dtype)
    matrices = [cell_matrix(up).contiguous() for up in (w.up1, w.up2)]
    norm = w.up_norm.weight, w.up_norm.bias
    upscaling = matrices[0], w.up1.bias, *norm, matrices[1], w.up2.bias
    masks = zip(*(mask.flatten() for mask in w.masks), strict=True)
    together = [torch.stack(layer).contiguous() for layer in masks]
    return _Prepared(w, upscaling, (*w.iou.flatten(), *together))


def _projections(attention: AttentionWeights) -> Projections:
    """All but the bias of the output, which the next step adds."""
    from sam2_fast.kernels.decoder_tokens import Projections

    return Projections(
        q=attention.q.weight,
        q_bias=attention.q.bias,
        k=attention.k.weight,
        k_bias=attention.k.bias,
        v=attention.v.weight,
        v_bias=attention.v.bias,
        out=attention.out.weight,
    )


def _queries(attention: AttentionWeights) -> Sequence[Tensor]:
    """Matrix and bias of the queries, and the keys' matrix: their bias changes no softmax."""
    return attention.q.weight, attention.q.bias, attention.k.weight


def _values(attention: AttentionWeights) -> tuple[Tensor, Tensor, Tensor]:
    return attention.v.weight, attention.v.bias, attention.out.weight


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
    weights: MaskDecoderWeights,
    num_heads: int,
    *_: object,
) -> str | None:
    """Why it cannot run, or None."""
    dim, tokens = image.shape[3], prompts.shape[1]
    is_power = num_heads & (num_heads - 1) == 0
    if dim not in (128, 256) or not is_power or num_heads > _MOST_HEADS or tokens > _MOST_TOKENS:
        wanted = f"128 or 256 channels, 1, 2, 4 or 8 heads, up to {_MOST_TOKENS} tokens"
        return f"{dim} channels, {num_heads} heads, {tokens} tokens: it takes {wanted}"
    if dim // num_heads > _MOST_HEAD_CHANNELS:
        most = f"up to {_MOST_HEAD_CHANNELS} channels a head"
        return f"{dim} channels in {num_heads} heads: it takes {most}"
    if 0 in prompts.shape[:2] or 0 in image.shape:
        return "there is no object, token or image token, it wants one"
    return None
