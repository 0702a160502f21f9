"""The mask decoder on a GPU, in Triton (docs/kernels/mask_decoder.md).

Five launches read the image tokens, one more upscales and predicts masks. Between them run the
layers of the prompt tokens.
"""

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

_MAX_TOKENS = 64
_MAX_HEADS = 8
_MAX_HEAD_CHANNELS = 128
_MIN_ROWS = 32


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
    """`mask_decoder` in Triton, without gradients."""
    from sam2_fast.kernels.decoder_heads import token_heads, token_to_image_output
    from sam2_fast.kernels.decoder_mlp import token_mlp
    from sam2_fast.kernels.decoder_tokens import Pending, token_step
    from sam2_fast.kernels.mask_decoder import image_to_token_attention, token_to_image_attention
    from sam2_fast.kernels.mask_prediction import upscale_and_predict_masks

    dtype = compute_dtype(weights.first_matrix)
    residual_dtype = torch.float32 if torch.is_autocast_enabled(image.device.type) else image.dtype
    with torch.no_grad():
        w = derive(weights, f"triton {dtype}", lambda: _prepared(weights, dtype))
        pixels = image.detach().flatten(1, 2).contiguous()
        position = position.detach().to(image.dtype).contiguous()
        prompts = _rows_contiguous(prompts.detach())
        count = prompts.shape[1]
        if present is not None:
            # Triton's interpreter has no bool
            present = present.contiguous().view(torch.uint8)
        rows = max(1 << (count - 1).bit_length(), _MIN_ROWS // num_heads)
        step = partial(token_step, prompts, present, heads=num_heads, rows=rows, eps=EPS)
        first, second = w.named.layers
        state = step(None, self_attention=_projections(first.self_attention))
        residual = None
        for layer, following in ((first, second), (second, None)):
            norm = layer.norm1
            bias = layer.self_attention.out.bias
            pending = Pending(state.self_parts, bias, residual, norm.weight, norm.bias)
            state = step(pending, to_image=_queries(layer.token_to_image))
            spans = token_to_image_attention(pixels, position, state.queries, num_heads)
            values = _values(layer.token_to_image)
            attended = token_to_image_output(spans, values, num_heads, count)
            norm = layer.norm2
            bias = layer.token_to_image.out.bias
            pending = Pending(attended, bias, state.tokens, norm.weight, norm.bias)
            fc1, fc2 = layer.fc1, layer.fc2
            residual, parts = token_mlp(pending, (fc1.weight, fc1.bias, fc2.weight), EPS)
            pending = Pending(parts, fc2.bias, residual, layer.norm3.weight, layer.norm3.bias)
            if following is None:
                attention = {"to_image": _queries(w.named.final_attention)}
            else:
                attention = {"self_attention": _projections(following.self_attention)}
            state = step(pending, to_token=_projections(layer.image_to_token), **attention)
            residual = state.tokens
            bias_and_norm = layer.image_to_token.out.bias, layer.norm4.weight, layer.norm4.bias
            pixels = image_to_token_attention(
                pixels, position, state.to_token, num_heads, bias_and_norm, EPS, residual_dtype
            )
        last = w.named.final_attention
        norm = w.named.final_norm
        spans = token_to_image_attention(pixels, position, state.queries, num_heads)
        attended = token_to_image_output(spans, _values(last), num_heads, count)
        pending = Pending(attended, last.out.bias, residual, norm.weight, norm.bias)
        iou, outputs, tokens = token_heads(
            pending, present, w.heads, first_mask_token, iou_token, EPS, prompts.dtype
        )
        maps = (x.detach().contiguous() for x in (mid, high))
        choice = {"iou": iou, "first_value": first_mask_token - iou_token - 1} if best else {}
        logits = upscale_and_predict_masks(
            pixels, image.shape[2], *maps, w.upscaling, outputs, MAP_EPS, **choice
        )
        return logits, iou, tokens


@dataclass(frozen=True)
class _Prepared:
    """Weights as the Triton kernels read them."""

    named: MaskDecoderWeights
    upscaling: tuple[Tensor, ...]  # matrix and bias, norm, matrix and bias
    heads: tuple[Tensor, ...]  # three matrices and biases for IoU; three for all masks, stacked


def _prepared(weights: MaskDecoderWeights, dtype: torch.dtype) -> _Prepared:
    w = for_gpu(weights, dtype)
    matrices = [cell_matrix(up).contiguous() for up in (w.up1, w.up2)]
    norm = w.up_norm.weight, w.up_norm.bias
    upscaling = matrices[0], w.up1.bias, *norm, matrices[1], w.up2.bias
    masks = zip(*(mask.flatten() for mask in w.masks), strict=True)
    stacked = [torch.stack(layer).contiguous() for layer in masks]
    return _Prepared(w, upscaling, (*w.iou.flatten(), *stacked))


def _projections(attention: AttentionWeights) -> Projections:
    """All projections except the bias of the output, which the next step adds."""
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
    """Matrix and bias of queries, matrix of keys: the bias of keys does not change the softmax."""
    return attention.q.weight, attention.q.bias, attention.k.weight


def _values(attention: AttentionWeights) -> tuple[Tensor, Tensor, Tensor]:
    return attention.v.weight, attention.v.bias, attention.out.weight


def _rows_contiguous(prompts: Tensor) -> Tensor:
    """[B, T, C] with contiguous tokens; objects may share the same ones."""
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
    """Why it cannot run on these arguments, or None."""
    dim = image.shape[3]
    tokens = prompts.shape[1]
    is_power = num_heads & (num_heads - 1) == 0
    if dim not in (128, 256) or not is_power or num_heads > _MAX_HEADS or tokens > _MAX_TOKENS:
        supported = f"128 or 256 channels, 1, 2, 4 or 8 heads, up to {_MAX_TOKENS} tokens"
        return f"{dim} channels, {num_heads} heads, {tokens} tokens; supported: {supported}"
    if dim // num_heads > _MAX_HEAD_CHANNELS:
        supported = f"up to {_MAX_HEAD_CHANNELS} channels a head"
        return f"{dim} channels in {num_heads} heads; supported: {supported}"
    if 0 in prompts.shape[:2] or 0 in image.shape:
        return "at least one object, one prompt token and one image token are required"
    return None
