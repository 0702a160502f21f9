"""Windowed attention of the Hiera trunk."""

from __future__ import annotations

from collections.abc import Hashable

import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_fast.ops.core.native import native
from sam2_fast.ops.core.op import Backend, Op
from sam2_fast.ops.core.requirements import FLOATS, HALF, fits, no_grad, on_one, plain, stored_in
from sam2_fast.proving.rules import Rule, first_rows

__all__ = ["window_attention"]

_MAX_WINDOW = 64
_MAX_HEAD = 1024
_MAX_TRITON_HEAD = 128


def window_attention(
    qkv: Tensor,
    pad: Tensor,
    num_heads: int,
    window: int,
    pool: bool = False,
    *,
    backend: str = "auto",
) -> Tensor:
    """Attention inside windows of `window` x `window` tokens; 0: over the whole grid.

    qkv: [B, H, W, 3 * num_heads * d] projected tokens, order (q, k, v), then head, then channel.
    pad: [3 * num_heads * d] projection of a padded token, which is the bias of the projection.
        Windows that extend beyond the grid have such tokens as ordinary keys, unmasked.
    pool: max-pool the queries 2 x 2 inside each window; the result then has half the height and
        width.
    backend: "auto", "triton", "cpu" or "torch".
    Returns [B, H or H / 2, W or W / 2, num_heads * d] in the dtype of qkv, or under autocast in
    that of autocast. Raises ValueError for shapes that do not fit, BackendError if the named
    backend cannot run.
    Source: official `MultiScaleBlock` and `MultiScaleAttention`. The trunk runs whole blocks as one
    op, `hiera_block`.
    """
    device = qkv.device.type
    if (
        device in ("cpu", "cuda")
        and torch.is_autocast_enabled(device)
        and qkv.dtype != torch.float64
    ):
        qkv, pad = (x.to(torch.get_autocast_dtype(device)) for x in (qkv, pad))
    _check(qkv, pad, num_heads, window)
    return _OP(backend, qkv, pad, num_heads, window, pool)


def _check(qkv: Tensor, pad: Tensor, num_heads: int, window: int) -> None:
    if num_heads < 1 or qkv.ndim != 4 or qkv.shape[3] % (3 * num_heads):
        raise ValueError(
            f"qkv: expected shape [B, H, W, 3 * num_heads * d] with num_heads {num_heads}, got "
            f"{tuple(qkv.shape)}"
        )
    if tuple(pad.shape) != (qkv.shape[3],):
        raise ValueError(
            f"pad: expected shape {(qkv.shape[3],)} for qkv of shape {tuple(qkv.shape)}, got "
            f"{tuple(pad.shape)}"
        )
    if window < 0:
        raise ValueError(f"window: expected tokens, or 0 for all, got {window}")


def window_attention_reference(
    qkv: Tensor, pad: Tensor, num_heads: int, window: int, pool: bool = False
) -> Tensor:
    """The definition, in torch."""
    batch, height, width, _ = qkv.shape
    if window == 0:
        return _attend(qkv, num_heads, pool)
    down, right = -height % window, -width % window
    if right:
        qkv = torch.cat([qkv, pad.expand(batch, height, right, -1)], dim=2)
    if down:
        qkv = torch.cat([qkv, pad.expand(batch, down, width + right, -1)], dim=1)
    rows, columns = qkv.shape[1] // window, qkv.shape[2] // window
    # [B, rows, columns, window, window, C]
    windows = qkv.unflatten(1, (rows, window)).unflatten(3, (columns, window)).transpose(2, 3)
    out = _attend(windows.flatten(0, 2), num_heads, pool)
    side = out.shape[1]
    out = (
        out.unflatten(0, (batch, rows, columns))
        .transpose(2, 3)
        .reshape(batch, rows * side, columns * side, -1)
    )
    return out[:, : height // 2, : width // 2] if pool else out[:, :height, :width]


def _attend(qkv: Tensor, num_heads: int, pool: bool) -> Tensor:
    """Attention of every token to all tokens of its map.

    qkv: [N, H, W, 3 * C] -> [N, H or H / 2, W or W / 2, C].
    """
    count = qkv.shape[0]
    channels = qkv.shape[-1]
    q, k, v = qkv.split(channels // 3, dim=-1)  # [N, H, W, C] each
    if pool:
        q = F.max_pool2d(q.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
    out_height, out_width = q.shape[1:3]
    heads = (
        x.reshape(count, -1, num_heads, channels // 3 // num_heads).transpose(1, 2)
        for x in (q, k, v)
    )
    out = F.scaled_dot_product_attention(*heads)  # [N, heads, tokens, d]
    return out.transpose(1, 2).reshape(count, out_height, out_width, -1)


def _native_window(
    qkv: Tensor,
    pad: Tensor,
    num_heads: int,
    window: int,
    pool: bool = False,
    isa: str | None = None,
) -> Tensor:
    """Run the CPU kernel. isa: an older instruction set than this CPU's, for tests."""
    module = native()
    assert module is not None
    stride = 2 if pool else 1
    batch, height, width, channels = qkv.shape
    out = torch.empty(
        batch, height // stride, width // stride, channels // 3, dtype=qkv.dtype, device=qkv.device
    )
    inputs = qkv.detach().contiguous(), pad.detach().float().contiguous()
    module.window_attention(
        *inputs, out, num_heads, window, pool, torch.get_num_threads(), isa or module.cpu_isa()
    )
    return out


def _triton_window(
    qkv: Tensor, pad: Tensor, num_heads: int, window: int, pool: bool = False
) -> Tensor:
    from sam2_fast.kernels.window_attention import window_attention as launch

    output: Tensor = launch(
        qkv.detach().contiguous(), pad.detach().to(qkv.dtype).contiguous(), num_heads, window, pool
    )
    return output


def _refuses(
    qkv: Tensor, pad: Tensor, num_heads: int, window: int, pool: bool = False
) -> str | None:
    head = qkv.shape[3] // 3 // num_heads
    if head % 2 or not 2 <= head <= _MAX_HEAD or window > _MAX_WINDOW:
        return (
            f"a head has {head} channels, window is {window}; supported: even numbers of channels "
            f"up to {_MAX_HEAD}, windows up to {_MAX_WINDOW}"
        )
    return cannot_pool(qkv, window) if pool else None


def _triton_refuses(
    qkv: Tensor, pad: Tensor, num_heads: int, window: int, pool: bool = False
) -> str | None:
    if qkv.dtype not in HALF:
        return f"qkv is {qkv.dtype}; supported: bfloat16, float16"
    head = qkv.shape[3] // 3 // num_heads
    if head > _MAX_TRITON_HEAD:
        return f"a head has {head} channels; supported: up to {_MAX_TRITON_HEAD}"
    return cannot_pool(qkv, window) if pool else None


def cannot_pool(tokens: Tensor, window: int) -> str | None:
    """Why kernels cannot pool windows of tokens [B, H, W, C], or None. window 0: the whole grid."""
    if window % 2 == 0 and tokens.shape[1] % 2 == 0 and tokens.shape[2] % 2 == 0:
        return None
    return pooling_refusal(tokens, window)


def pooling_refusal(tokens: Tensor, window: int) -> str:
    """The message of a refusal to pool."""
    height, width = tokens.shape[1:3]
    return (
        f"window {window} on {height} x {width} tokens; supported with pooling: even windows on "
        "even grids"
    )


def _result(qkv: Tensor, pad: Tensor, num_heads: int, window: int, pool: bool) -> Tensor:
    stride = 2 if pool else 1
    height, width = qkv.shape[1] // stride, qkv.shape[2] // stride
    return qkv.new_empty(qkv.shape[0], height, width, qkv.shape[3] // 3)


def _configuration(
    qkv: Tensor, pad: Tensor, num_heads: int, window: int, pool: bool = False
) -> Hashable:
    return *qkv.shape[1:], num_heads, window, pool, qkv.dtype, pad.dtype


_OP = Op(
    "window_attention",
    schema="(Tensor qkv, Tensor pad, int num_heads, int window, bool pool) -> Tensor",
    reference=window_attention_reference,
    result=_result,
    backends=(
        Backend(
            "triton",
            _triton_window,
            (on_one("cuda"), plain, no_grad, fits(_triton_refuses)),
            kernels=("window",),
        ),
        Backend(
            "cpu",
            _native_window,
            (on_one("cpu"), plain, no_grad, stored_in(*FLOATS), fits(_refuses)),
        ),
    ),
    rule=Rule(_configuration, first_rows(1)),
)
