"""The definition of the mask decoder, in torch, and functions that other modules share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_fast.ops.core.layers import layer_norm, project
from sam2_fast.ops.mask_decoder.weights import (
    AttentionWeights,
    MaskDecoderWeights,
    MlpWeights,
    UpscalingWeights,
)

EPS = 1e-5
"""Of the norms of tokens."""
MAP_EPS = 1e-6
"""Of the norm between the two upscaling steps."""


def mask_decoder_reference(
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
    """The definition, in torch."""
    pixels = image.flatten(1, 2)
    tokens = prompts
    position = position.to(image.dtype)
    for i, w in enumerate(weights.layers):
        # in the first layer tokens equal their position: it is not added, and there is no residual
        q = tokens if i == 0 else tokens + prompts
        attended = attend(q, q, tokens, present, w.self_attention, num_heads)
        tokens = layer_norm(attended if i == 0 else tokens + attended, w.norm1, EPS)
        queries, keys = tokens + prompts, pixels + position
        attended = attend(queries, keys, pixels, None, w.token_to_image, num_heads)
        tokens = layer_norm(tokens + attended, w.norm2, EPS)
        hidden = F.relu(project(tokens, w.fc1))
        tokens = layer_norm(tokens + project(hidden, w.fc2), w.norm3, EPS)
        queries, keys = pixels + position, tokens + prompts
        attended = attend(queries, keys, tokens, present, w.image_to_token, num_heads)
        pixels = layer_norm(pixels + attended, w.norm4, EPS)
    queries, keys = tokens + prompts, pixels + position
    attended = attend(queries, keys, pixels, None, weights.final_attention, num_heads)
    tokens = layer_norm(tokens + attended, weights.final_norm, EPS)
    upscaled = _upscale(pixels.unflatten(1, image.shape[1:3]), mid, high, weights)
    outputs, iou = hypernetwork_outputs_and_iou(
        tokens, weights.iou, weights.masks, first_mask_token, iou_token, best
    )
    logits = outputs @ upscaled.flatten(1, 2).transpose(1, 2)  # [B, M or 1, 4h * 4w]
    dtype = torch.promote_types(tokens.dtype, torch.float32)
    return logits.unflatten(2, upscaled.shape[1:3]).to(dtype), iou, tokens


def hypernetwork_outputs_and_iou(
    tokens: Tensor,
    iou_weights: MlpWeights,
    masks: Sequence[MlpWeights],
    first_mask_token: int,
    iou_token: int,
    best: bool,
) -> tuple[Tensor, Tensor]:
    """Outputs of the hypernetworks [B, M or 1, C / 8], and predicted IoU [B, K].

    tokens: [B, T, C]; masks: the hypernetwork of each mask.
    """
    dtype = torch.promote_types(tokens.dtype, torch.float32)
    iou = three_layers(tokens[:, iou_token], iou_weights).sigmoid().to(dtype)
    numbered = enumerate(masks, start=first_mask_token)
    outputs = torch.stack([three_layers(tokens[:, i], w) for i, w in numbered], dim=1)
    if best:
        first = first_mask_token - iou_token - 1
        choice = iou[:, first : first + outputs.shape[1]].argmax(-1)
        outputs = select_one(outputs, choice)
    return outputs, iou


def select_one(values: Tensor, choice: Tensor) -> Tensor:
    """The chosen entry of each row. values: [B, M, ...]; choice: [B] -> [B, 1, ...]."""
    return values[torch.arange(values.shape[0], device=values.device), choice][:, None]


def three_layers(x: Tensor, weights: MlpWeights) -> Tensor:
    """x: [..., C] through three linear layers with ReLU between."""
    hidden = F.relu(project(x, weights.linear1))
    return project(F.relu(project(hidden, weights.linear2)), weights.linear3)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    present: Tensor | None,
    weights: AttentionWeights,
    num_heads: int,
) -> Tensor:
    """Multi-head attention between its projections: [B, N, C].

    q: [1 or B, N, C]; k, v: [1 or B, M, C]; present: [B, M] bool, keys to attend to, or None.
    """
    batch = max(q.shape[0], k.shape[0])
    inputs = (q, weights.q), (k, weights.k), (v, weights.v)
    projected = (project(x, layer).expand(batch, -1, -1) for x, layer in inputs)
    # [B, heads, tokens, d] each
    queries, keys, values = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in projected)
    mask = None if present is None else present[:, None, None]
    attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
    return project(attended.transpose(1, 2).flatten(-2), weights.out)


def _upscale(pixels: Tensor, mid: Tensor, high: Tensor, weights: MaskDecoderWeights) -> Tensor:
    """Two transposed convolutions of stride 2, each followed by the sum with a finer map.

    pixels: [B, h, w, C] -> [B, 4h, 4w, C / 8].
    """
    x = spread(F.linear(pixels, cell_matrix(weights.up1))) + weights.up1.bias + mid
    x = F.gelu(layer_norm(x, weights.up_norm, MAP_EPS))
    return F.gelu(spread(F.linear(x, cell_matrix(weights.up2))) + weights.up2.bias + high)


def cell_matrix(upscaling: UpscalingWeights) -> Tensor:
    """A transposed convolution [I, O, 2, 2] as a matrix [4 * O, I].

    Rows are ordered by position in the 2 x 2 cell (dy, dx), then by channel.
    """
    return upscaling.weight.permute(2, 3, 1, 0).flatten(0, 2)


def spread(x: Tensor) -> Tensor:
    """Distribute 2 x 2 cells over the grid: [B, h, w, 4 * c] -> [B, 2h, 2w, c]."""
    return x.unflatten(3, (2, 2, -1)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
