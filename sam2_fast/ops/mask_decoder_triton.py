"""The mask decoder on a GPU: five passes over the image and one that draws, each a kernel; the few prompt tokens are torch's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_fast.ops.mask_decoder_reference import BODY, EPS, HEAD, MAP_EPS, attend, brushes_and_iou, norm
from sam2_fast.ops.memory_table import products_dtype
from sam2_fast.ops.native import is_plain, wants_gradients

_MOST_TOKENS, _MOST_HEADS, _LEAST_ROWS = 64, 8, 32


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
    from sam2_fast.kernels.mask_decoder import look, paint, take
    from sam2_fast.kernels.rope_attention import merge

    dtype = products_dtype(weights[0])
    stream = torch.float32 if torch.is_autocast_enabled(image.device.type) else image.dtype
    with torch.no_grad():
        w = [t.detach().to(dtype).contiguous() if t.ndim == 2 else t.detach().contiguous() for t in weights]
        pixels, place = image.detach().flatten(1, 2).contiguous(), position.detach().to(image.dtype).contiguous()
        tokens = prompts.detach()
        for i in range(2):
            v = w[36 * i : 36 * i + 36]
            q = tokens if i == 0 else tokens + prompts
            looked = attend(q, q, tokens, present, v[:8], num_heads)
            tokens = norm(looked if i == 0 else tokens + looked, v[8:10])
            queries = _queries(tokens + prompts, v[10:14], num_heads)
            seen = merge(*look(pixels, place, queries, num_heads), torch.empty_like(queries, dtype=torch.float32))
            tokens = norm(tokens + _found(seen, v[14:18], tokens, num_heads), v[18:20])
            tokens = norm(tokens + F.linear(F.relu(F.linear(tokens, v[20], v[21])), v[22], v[23]), v[24:26])
            given = _taken(tokens, prompts, present, v[28:36], num_heads)
            pixels = take(pixels, place, given, num_heads, (v[35], v[26], v[27]), EPS, stream)
        v = w[72:BODY]
        queries = _queries(tokens + prompts, v[:4], num_heads)
        seen = merge(*look(pixels, place, queries, num_heads), torch.empty_like(queries, dtype=torch.float32))
        tokens = norm(tokens + _found(seen, v[4:8], tokens, num_heads), v[8:10])
        heads = [w[i : i + HEAD] for i in range(BODY, len(w), HEAD)]
        brushes, iou = brushes_and_iou(tokens, heads, first_mask_token, iou_token, best)
        maps = (x.detach().contiguous() for x in (mid, high))
        logits = paint(pixels, image.shape[2], *maps, tuple(v[10:16]), brushes.float().contiguous(), MAP_EPS)
        found = tokens.to(prompts.dtype)
        return logits, iou, found if present is None else found.where(present[..., None], 0)


def _by_head(x: Tensor, heads: int) -> Tensor:
    """[B, T, heads * d] -> [B, heads, T, d], T filled up with zeros to a power of two that gives a tile's rows."""
    tokens = max(1 << (x.shape[1] - 1).bit_length(), _LEAST_ROWS // heads)
    filled = F.pad(x, (0, 0, 0, tokens - x.shape[1]))
    return filled.unflatten(-1, (heads, -1)).transpose(1, 2)


def _fold(x: Tensor, matrix: Tensor) -> Tensor:
    """x: [B, heads, T, d], matrix: [heads * d, C] -> [B, heads * T, C]: each head through its rows."""
    kind = matrix.dtype
    return torch.matmul(x.to(kind), matrix.unflatten(0, (x.shape[1], -1))).flatten(1, 2).to(kind).contiguous()


def _queries(x: Tensor, w: Sequence[Tensor], heads: int) -> Tensor:
    """Tokens [B, T, C] to queries of image tokens, projected and folded with the keys' matrix. A key's bias moves all scores of a query."""
    return _fold(_by_head(F.linear(x, w[0], w[1]), heads), w[2])


def _found(seen: Tensor, w: Sequence[Tensor], like: Tensor, heads: int) -> Tensor:
    """What queries saw [B, heads * T, C], before the values' matrix, to [B, T, C] after the output's."""
    rows = seen.unflatten(1, (heads, -1))[:, :, : like.shape[1]].to(w[0].dtype)
    values = torch.matmul(rows, w[0].unflatten(0, (heads, -1)).transpose(1, 2)).transpose(1, 2).flatten(2) + w[1]
    return F.linear(values.to(w[2].dtype), w[2], w[3])


def _taken(tokens: Tensor, prompts: Tensor, present: Tensor | None, w: Sequence[Tensor], heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Keys, offsets and values that image tokens take from: folded with the queries' and the output's matrices."""
    keys, values = _by_head(F.linear(tokens + prompts, w[2], w[3]), heads), _by_head(F.linear(tokens, w[4], w[5]), heads)
    offsets = (keys.float() * w[1].float().unflatten(0, (heads, 1, -1))).sum(-1)[:, :, : tokens.shape[1]]
    if present is not None:
        offsets = offsets.masked_fill(~present[:, None], float("-inf"))
    offsets = F.pad(offsets, (0, keys.shape[2] - tokens.shape[1]), value=float("-inf"))  # [B, heads, T]
    return _fold(keys, w[0]), offsets.flatten(1), _fold(values, w[6].t())


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
    if 0 in prompts.shape[:2] or 0 in image.shape:
        return "there is no object, token or image token, it wants one"
    return None
