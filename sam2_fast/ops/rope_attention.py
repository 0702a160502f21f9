"""Attention with an axial rotary position encoding: one head, real-valued rotation."""

from __future__ import annotations

from collections.abc import Hashable

import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_fast.ops.core.native import native
from sam2_fast.ops.core.op import Backend, Op
from sam2_fast.ops.core.requirements import FLOATS, HALF, fits, no_grad, on_one, plain, stored_in
from sam2_fast.proving.rules import Rule, bits, first_rows

__all__ = ["rope_attention", "rope_table"]

_MAX_CHANNELS = 1024
_MAX_TRITON_CHANNELS = 256


def rope_table(dim: int, side: int, theta: float = 10000.0) -> Tensor:
    """The rotation angles of a grid as (cos, sin): [2, side * side, dim / 2] float32.

    The first half of the pairs of channels is rotated by x, the second by y.
    """
    frequencies = 1.0 / (theta ** (torch.arange(0, dim, 4).float() / dim))  # [dim / 4]
    token = torch.arange(side * side)
    x, y = (token % side).float(), torch.div(token, side, rounding_mode="floor").float()
    angles = torch.cat([torch.outer(x, frequencies), torch.outer(y, frequencies)], dim=-1)
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """x [..., tokens, dim] with pairs (2i, 2i + 1) rotated by `table` [2, tokens, dim / 2].

    Computed in float32, or in float64 for float64.
    """
    floats = x.to(torch.promote_types(x.dtype, torch.float32))
    cos, sin = table.to(floats.dtype)
    even, odd = floats[..., 0::2], floats[..., 1::2]
    pairs = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return pairs.flatten(-2).to(x.dtype)


def rope_attention(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor, num_unrotated: int = 0, *, backend: str = "auto"
) -> Tensor:
    """Attention of q over k and v, with q and k rotated; k has maps as long as q, rotated equally.

    q: [B, N, d]; k: [B, M * N + num_unrotated, d]; v: [B, M * N + num_unrotated, dv], dv <= d;
    table: [2, N, d / 2] float32.
    num_unrotated: tokens at the end of k (object pointers) without a position in the image.
    backend: "auto", "triton", "cpu" or "torch". Returns [B, N, dv] in the dtype of q, or under
    autocast in that of autocast.
    Raises ValueError for shapes that do not fit, BackendError if the named backend cannot run.
    Source: official `RoPEAttention`, with real instead of complex numbers.
    """
    device = q.device.type
    if device in ("cpu", "cuda") and torch.is_autocast_enabled(device) and q.dtype != torch.float64:
        q, k, v = (x.to(torch.get_autocast_dtype(device)) for x in (q, k, v))
    _check(q, k, v, table, num_unrotated)
    return _OP(backend, q, k, v, table, num_unrotated)


def _check(q: Tensor, k: Tensor, v: Tensor, table: Tensor, num_unrotated: int) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim != 3 or x.shape[0] != q.shape[0]:
            raise ValueError(
                f"{name}: expected shape [B, tokens, channels] with the B of q, got "
                f"{tuple(x.shape)}"
            )
    batch, queries, dim = q.shape
    keys = k.shape[1]
    if k.shape[2] != dim or v.shape[1] != keys or v.shape[2] > dim:
        raise ValueError(
            f"k, v: expected [{batch}, K, {dim}] and [{batch}, K, at most {dim}], got "
            f"{tuple(k.shape)} and {tuple(v.shape)}"
        )
    if tuple(table.shape) != (2, queries, dim // 2) or dim % 2:
        raise ValueError(
            f"table: expected shape {(2, queries, dim // 2)} for q of shape {tuple(q.shape)}, got "
            f"{tuple(table.shape)}"
        )
    if num_unrotated < 0 or num_unrotated > keys or (queries and (keys - num_unrotated) % queries):
        raise ValueError(
            f"k: expected whole maps of {queries} tokens and {num_unrotated} unrotated ones, got "
            f"{keys} tokens"
        )


def rope_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor, num_unrotated: int = 0
) -> Tensor:
    """The definition, in torch."""
    length = k.shape[1] - num_unrotated
    maps = k[:, :length].unflatten(1, (-1, q.shape[1])) if length else k[:, :0]
    rotated = rotate(maps, table).flatten(1, 2) if length else maps
    keys = torch.cat([rotated, k[:, length:]], dim=1)
    # torch's fused attention needs as many channels in values as in keys; without it, the scores of
    # all tokens would be stored at the same time
    values = F.pad(v, (0, q.shape[2] - v.shape[2]))
    return F.scaled_dot_product_attention(
        rotate(q, table)[:, None], keys[:, None], values[:, None]
    )[:, 0, :, : v.shape[2]]


def _native_rope(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor, num_unrotated: int, isa: str | None = None
) -> Tensor:
    """Run the CPU kernel. isa: an older instruction set than this CPU's, for tests."""
    module = native()
    assert module is not None
    q, k, v, table = (x.detach().contiguous() for x in (q, k, v, table))
    out = torch.empty(q.shape[0], q.shape[1], v.shape[2], dtype=q.dtype, device=q.device)
    module.rope_attention(
        q, k, v, table, out, num_unrotated, torch.get_num_threads(), isa or module.cpu_isa()
    )
    return out


def _triton_rope(q: Tensor, k: Tensor, v: Tensor, table: Tensor, num_unrotated: int) -> Tensor:
    from sam2_fast.kernels.rope_attention import rope_attention as launch

    output: Tensor = launch(*(x.detach().contiguous() for x in (q, k, v, table)), num_unrotated)
    return output


def _refuses_dtypes(q: Tensor, k: Tensor, v: Tensor, table: Tensor, stored: str) -> str | None:
    if k.dtype == v.dtype == q.dtype and table.dtype == torch.float32:
        return None
    actual = f"{q.dtype}, {k.dtype}, {v.dtype} and {table.dtype}"
    return f"dtypes are {actual}; supported: {stored} with a float32 table"


def _refuses(q: Tensor, k: Tensor, v: Tensor, table: Tensor, num_unrotated: int = 0) -> str | None:
    if reason := _refuses_dtypes(q, k, v, table, "float32, bfloat16 or float16"):
        return reason
    if not 2 <= q.shape[2] <= _MAX_CHANNELS or v.shape[2] < 1 or k.shape[1] < 1:
        return (
            f"q has shape {tuple(q.shape)}, v {tuple(v.shape)}; supported: 2 to {_MAX_CHANNELS} "
            "channels, at least one key"
        )
    return None


def _triton_refuses(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor, num_unrotated: int = 0
) -> str | None:
    if q.dtype not in HALF:
        return f"q is {q.dtype}; supported: bfloat16, float16"
    if reason := _refuses_dtypes(q, k, v, table, "bfloat16 or float16"):
        return reason
    most = _MAX_TRITON_CHANNELS
    if not 2 <= q.shape[2] <= most or v.shape[2] < 1 or k.shape[1] < 1 or k.numel() >= 2**31:
        return (
            f"q has shape {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}; supported: 2 "
            f"to {most} channels, at least one key, fewer than 2^31 elements of k"
        )
    return None


def _result(q: Tensor, k: Tensor, v: Tensor, table: Tensor, num_unrotated: int) -> Tensor:
    return q.new_empty(q.shape[0], q.shape[1], v.shape[2])


def _configuration(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor, num_unrotated: int = 0
) -> Hashable:
    keys = bits(k.shape[1])
    return *q.shape[1:], keys, v.shape[2], num_unrotated > 0, q.dtype, table.dtype


_OP = Op(
    "rope_attention",
    schema="(Tensor q, Tensor k, Tensor v, Tensor table, int num_unrotated) -> Tensor",
    reference=rope_attention_reference,
    result=_result,
    backends=(
        Backend(
            "triton",
            _triton_rope,
            (on_one("cuda"), plain, no_grad, fits(_triton_refuses)),
            kernels=("rotate", "attend", "merge"),
        ),
        Backend(
            "cpu",
            _native_rope,
            (on_one("cpu"), plain, no_grad, stored_in(*FLOATS), fits(_refuses)),
        ),
    ),
    takes=lambda *_: True,
    rule=Rule(_configuration, first_rows(3)),
)
