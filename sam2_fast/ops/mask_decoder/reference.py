"""The mask decoder's definition, in torch, and what of it every device computes so."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_fast.ops.core.norm import layer_norm

EPS, MAP_EPS = 1e-5, 1e-6  # of the tokens' norms, of the norm between the upscalings
BODY, HEAD = 88, 6  # tensors before the heads, of a head


def mask_decoder_reference(
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
    """The definition, in torch."""
    pixels, tokens, place = image.flatten(1, 2), prompts, position.to(image.dtype)
    for i in range(2):
        w = weights[36 * i : 36 * i + 36]
        # in the first layer the tokens are still their own position: nothing to add, nothing to keep
        q = tokens if i == 0 else tokens + prompts
        looked = attend(q, q, tokens, present, w[:8], num_heads)
        tokens = norm(looked if i == 0 else tokens + looked, w[8:10])
        tokens = norm(tokens + attend(tokens + prompts, pixels + place, pixels, None, w[10:18], num_heads), w[18:20])
        tokens = norm(tokens + F.linear(F.relu(F.linear(tokens, w[20], w[21])), w[22], w[23]), w[24:26])
        looked = attend(pixels + place, tokens + prompts, tokens, present, w[28:36], num_heads)
        pixels = norm(pixels + looked, w[26:28])
    w = weights[72:88]
    tokens = norm(tokens + attend(tokens + prompts, pixels + place, pixels, None, w[:8], num_heads), w[8:10])
    upscaled = _upscale(pixels.unflatten(1, image.shape[1:3]), mid, high, w[10:])
    heads = [weights[i : i + HEAD] for i in range(BODY, len(weights), HEAD)]
    wide = torch.promote_types(tokens.dtype, torch.float32)
    outputs, iou = hypernetwork_outputs_and_iou(tokens, heads, first_mask_token, iou_token, best)
    drawn = outputs @ upscaled.flatten(1, 2).transpose(1, 2)  # [B, M or 1, 4h * 4w]
    return drawn.unflatten(2, upscaled.shape[1:3]).to(wide), iou, tokens


def hypernetwork_outputs_and_iou(
    tokens: Tensor, heads: Sequence[Sequence[Tensor]], first_mask_token: int, iou_token: int, best: bool
) -> tuple[Tensor, Tensor]:
    """Outputs of the hypernetworks [B, M or 1, C / 8], and predicted IoU [B, K].

    tokens: [B, T, C]; heads: the layers that predict IoU, then the hypernetwork of each mask.
    """
    wide = torch.promote_types(tokens.dtype, torch.float32)
    iou = three_layers(tokens[:, iou_token], heads[0]).sigmoid().to(wide)
    masks = enumerate(heads[1:], start=first_mask_token)
    outputs = torch.stack([three_layers(tokens[:, i], w) for i, w in masks], dim=1)
    if best:
        first = first_mask_token - iou_token - 1
        choice = iou[:, first : first + outputs.shape[1]].argmax(-1)
        outputs = taken(outputs, choice)
    return outputs, iou


def taken(values: Tensor, choice: Tensor) -> Tensor:
    """values: [B, M, ...]; choice: [B] -> [B, 1, ...]."""
    return values[torch.arange(values.shape[0], device=values.device), choice][:, None]


def three_layers(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """x: [..., C] through three linear layers with ReLU between."""
    hidden = F.relu(F.linear(x, weights[0], weights[1]))
    return F.linear(F.relu(F.linear(hidden, weights[2], weights[3])), weights[4], weights[5])


def attend(q: Tensor, k: Tensor, v: Tensor, present: Tensor | None, weights: Sequence[Tensor], num_heads: int) -> Tensor:
    """q: [1 or B, N, C]; k, v: [1 or B, M, C]; present: [B, M] bool, keys to attend to -> [B, N, C]."""
    batch = max(q.shape[0], k.shape[0])
    projected = (F.linear(x, weights[i], weights[i + 1]).expand(batch, -1, -1) for i, x in ((0, q), (2, k), (4, v)))
    queries, keys, values = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in projected)  # [B, heads, N, d]
    mask = None if present is None else present[:, None, None]
    attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
    return F.linear(attended.transpose(1, 2).flatten(-2), weights[6], weights[7])


def norm(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    return layer_norm(x, weights[0], weights[1], EPS)


def _upscale(pixels: Tensor, mid: Tensor, high: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """pixels: [B, h, w, C] -> [B, 4h, 4w, C / 8]: two transposed convolutions of stride 2, each followed by a finer map."""
    x = spread(F.linear(pixels, weights[0])) + weights[1] + mid
    x = F.gelu(layer_norm(x, weights[2], weights[3], MAP_EPS))
    return F.gelu(spread(F.linear(x, weights[4])) + weights[5] + high)


def spread(x: Tensor) -> Tensor:
    """[B, h, w, 4 * c] -> [B, 2h, 2w, c]."""
    return x.unflatten(3, (2, 2, -1)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
