"""One block of the Hiera trunk as one op: norm, windowed attention, norm, MLP, with residuals."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_fast.ops.core.autocast import compute_dtype
from sam2_fast.ops.core.cache import derive, for_cpu, for_gpu
from sam2_fast.ops.core.layers import layer_norm, project
from sam2_fast.ops.core.native import native
from sam2_fast.ops.core.op import Backend, Op
from sam2_fast.ops.core.requirements import (
    FLOATS,
    HALF,
    computes_in,
    fits,
    no_grad,
    on_one,
    plain,
    stored_in,
)
from sam2_fast.ops.core.weights import Linear, Norm, Weights, linear, norm, optional
from sam2_fast.ops.window_attention import (
    cannot_pool,
    pooling_refusal,
    window_attention,
    window_attention_reference,
)
from sam2_fast.proving.rules import Rule, first_rows

__all__ = ["HieraBlockWeights", "hiera_block"]

_MAX_WINDOW = 64
_MAX_HEAD = 128
_MAX_TRITON_CHANNELS = 4096


@dataclass(frozen=True, eq=False)
class HieraBlockWeights(Weights, root=True):
    """A block from C to D channels, with F hidden channels in its MLP."""

    norm1: Norm = norm("C")
    qkv: Linear = linear("3*D", "C")
    proj: Linear = linear("D", "D")
    norm2: Norm = norm("D")
    fc1: Linear = linear("F", "D")
    fc2: Linear = linear("D", "F")
    shortcut: Linear | None = optional(Linear, O="D", I="C")
    """Present exactly if queries are pooled."""


def hiera_block(
    x: Tensor,
    weights: HieraBlockWeights,
    num_heads: int,
    window: int,
    pool: bool = False,
    eps: float = 1e-6,
    *,
    backend: str = "auto",
    overwrite: bool = False,
) -> Tensor:
    """A pre-norm block: y = s(x) + attention(norm(x)); y + MLP(norm(y)) with GELU in the MLP.

    x: [B, H, W, C]. weights: of a block from C to D channels, with a shortcut exactly if `pool`.
    window: attention stays inside windows of `window` x `window` tokens. A window that extends
        beyond the grid is padded with tokens of zeros, unmasked. 0: every token attends to all.
    pool: queries and the shortcut norm(x) -> s are max-pooled 2 x 2; else s(x) = x and D = C.
    eps: of the norms. overwrite: the caller does not need x any more; the kernel then writes to its
        memory if it can, since fresh memory costs page faults.
    backend: "auto", "triton", "cpu" or "torch".
    Returns [B, H, W, D], or with `pool` [B, H / 2, W / 2, D], in the dtype of x. Under autocast
    products are computed in its dtype.
    Raises ValueError for shapes that do not fit, BackendError if the named backend cannot run.
    Source: official `MultiScaleBlock`.
    """
    _check(x, weights, num_heads, window, pool)
    run, inputs = _OP.select(backend, x, weights, num_heads, window, pool, eps)
    if overwrite and not pool and run is _native_block and inputs[0].is_contiguous():
        return run(*inputs, out=inputs[0].detach())
    return run(*inputs)


def _check(x: Tensor, weights: HieraBlockWeights, num_heads: int, window: int, pool: bool) -> None:
    if x.ndim != 4:
        raise ValueError(f"x: expected shape [B, H, W, C], got {tuple(x.shape)}")
    if (weights.shortcut is not None) != pool:
        got = "none" if weights.shortcut is None else "one"
        raise ValueError(
            f"weights.shortcut: expected one exactly if queries are pooled, got {got} with "
            f"pool={pool}"
        )
    dim, dim_out = weights.norm1.weight.shape[0], weights.norm2.weight.shape[0]
    if x.shape[3] != dim:
        raise ValueError(f"x: expected the {dim} channels of the weights, got {x.shape[3]}")
    if not pool and dim != dim_out:
        raise ValueError(f"weights: expected {dim} output channels without pooling, got {dim_out}")
    if num_heads < 1 or dim_out % num_heads:
        raise ValueError(f"num_heads: expected a divisor of {dim_out} channels, got {num_heads}")
    if window < 0:
        raise ValueError(f"window: expected tokens, or 0 for all, got {window}")


def hiera_block_reference(
    x: Tensor, weights: HieraBlockWeights, num_heads: int, window: int, pool: bool, eps: float
) -> Tensor:
    """The definition, in torch."""
    w = weights
    normed = layer_norm(x, w.norm1, eps)
    shortcut = x
    if w.shortcut is not None:
        projected = project(normed, w.shortcut)
        shortcut = F.max_pool2d(projected.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
    qkv = project(normed, w.qkv)
    # padding with zeros comes after the norm, so a padded token projects to the bias
    inputs = qkv, w.qkv.bias.to(qkv.dtype), num_heads, window, pool
    if qkv.device.type == "cpu":
        attended = window_attention_reference(*inputs)
    else:
        attended = window_attention(*inputs)  # it has a kernel for GPUs
    y = shortcut + project(attended, w.proj)
    hidden = F.gelu(project(layer_norm(y, w.norm2, eps), w.fc1))
    return y + project(hidden, w.fc2)


def _native_block(
    x: Tensor,
    weights: HieraBlockWeights,
    num_heads: int,
    window: int,
    pool: bool,
    eps: float,
    isa: str | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Run the CPU kernel. isa: an older instruction set than this CPU's, for tests.

    out: may be x without pooling. No window reads the output of another one, and if every token
    attends to all, all are read first.
    """
    module = native()
    assert module is not None
    dtype = compute_dtype(weights.first_matrix)
    prepared = derive(
        weights, f"cpu {dtype}", lambda: module.HieraBlockWeights(for_cpu(weights, dtype))
    )
    if out is None:
        stride = 2 if pool else 1
        dim_out = weights.proj.weight.shape[0]
        out = x.new_empty(x.shape[0], x.shape[1] // stride, x.shape[2] // stride, dim_out)
    module.hiera_block(
        x.detach().contiguous(),
        prepared,
        out,
        num_heads,
        window,
        pool,
        eps,
        torch.get_num_threads(),
        isa or module.cpu_isa(),
    )
    return out


def _triton_block(
    x: Tensor, weights: HieraBlockWeights, num_heads: int, window: int, pool: bool, eps: float
) -> Tensor:
    """Launch the Triton kernels of a block.

    One launch each: queries, keys and values; attention; projection; both layers of the MLP (in one
    launch with few channels); mean and rstd of the tokens; with `pool` the shortcut.
    """
    from sam2_fast.kernels.choices import choose as choose_form
    from sam2_fast.kernels.hiera_block import MLP_CHANNELS, mlp
    from sam2_fast.kernels.linear import GELU, fold_or_apply_norm, linear, linear_with_statistics
    from sam2_fast.kernels.window_attention import window_attention as attend

    dtype = compute_dtype(weights.first_matrix)
    with torch.no_grad():
        w, layers = derive(weights, f"triton {dtype} {eps}", lambda: _prepared(weights, dtype, eps))
        batch, height, width, dim = x.shape
        tokens = x.detach().contiguous().view(-1, dim)
        normed, statistics = fold_or_apply_norm(tokens, layers["qkv"])
        qkv = linear(normed, layers["qkv"], statistics).view(batch, height, width, -1)
        shortcut = tokens
        if pool:
            shortcut = linear(normed, layers["shortcut"], statistics, dtype=x.dtype, width=width)
        attended = attend(qkv, w.qkv.bias.to(dtype), num_heads, window, pool)
        dim_out = layers["proj"].weight.shape[0]
        fused = dim_out <= MLP_CHANNELS
        if fused:
            key = dtype.itemsize, x.element_size(), dim_out, height, width
            form = choose_form(x.device, "mlp", key, "one launch", ("two products",))
            fused = form == "one launch"
        y, statistics = linear_with_statistics(
            attended.flatten(0, 2),
            layers["proj"],
            residual=shortcut,
            dtype=x.dtype,
            return_statistics=not fused,
        )
        if fused:
            layers_of_mlp = w.fc1.weight, w.fc1.bias, w.fc2.weight, w.fc2.bias
            out = mlp(y, (w.norm2.weight, w.norm2.bias), layers_of_mlp, eps)
            return out.view(*attended.shape)
        normed, statistics = fold_or_apply_norm(y, layers["fc1"], statistics)
        hidden = linear(normed, layers["fc1"], statistics, activation=GELU)
        out = linear(hidden, layers["fc2"], residual=y, dtype=x.dtype)
        return out.view(*attended.shape)


def _prepared(
    weights: HieraBlockWeights, dtype: torch.dtype, eps: float
) -> tuple[HieraBlockWeights, dict[str, Any]]:
    """Weights with matrices in the compute dtype, and the linear layers of the Triton kernels.

    The norms are folded into the layers that follow them.
    """
    from sam2_fast.kernels.linear import Layer, fold
    from sam2_fast.kernels.linear import Norm as FoldedNorm

    w = for_gpu(weights, dtype)
    first = FoldedNorm(w.norm1.weight, w.norm1.bias, eps)
    second = FoldedNorm(w.norm2.weight, w.norm2.bias, eps)
    layers = {
        "qkv": fold(w.qkv.weight, w.qkv.bias, first),
        "proj": Layer(w.proj.weight, w.proj.bias),
        "fc1": fold(w.fc1.weight, w.fc1.bias, second),
        "fc2": Layer(w.fc2.weight, w.fc2.bias),
    }
    if w.shortcut is not None:
        layers["shortcut"] = fold(w.shortcut.weight, w.shortcut.bias, first)
    return w, layers


def _refuses(
    x: Tensor, weights: HieraBlockWeights, num_heads: int, window: int, pool: bool, eps: float
) -> str | None:
    head = weights.proj.weight.shape[0] // num_heads
    hidden = weights.fc1.weight.shape[0]
    if head % 2 or x.shape[3] % 2 or hidden % 2 or window > _MAX_WINDOW:
        return (
            f"x has {x.shape[3]} channels, a head {head}, the MLP {hidden}, window is {window}; "
            f"supported: even numbers of channels, window up to {_MAX_WINDOW}"
        )
    return _cannot_pool(x, window) if pool else None


def _triton_refuses(
    x: Tensor, weights: HieraBlockWeights, num_heads: int, window: int, pool: bool, eps: float
) -> str | None:
    head = weights.proj.weight.shape[0] // num_heads
    if x.numel() == 0 or head > _MAX_HEAD or x.shape[3] > _MAX_TRITON_CHANNELS:
        return (
            f"x has shape {tuple(x.shape)}, a head {head} channels; supported: at least one token, "
            f"x up to {_MAX_TRITON_CHANNELS} channels, a head up to {_MAX_HEAD}"
        )
    return _cannot_pool(x, window) if pool else None


def _cannot_pool(x: Tensor, window: int) -> str | None:
    return pooling_refusal(x, window) if window == 0 else cannot_pool(x, window)


def _result(
    x: Tensor, weights: list[Tensor], num_heads: int, window: int, pool: bool, eps: float
) -> Tensor:
    stride = 2 if pool else 1
    dim_out = HieraBlockWeights.unflatten(weights).proj.bias.shape[0]
    return x.new_empty(x.shape[0], x.shape[1] // stride, x.shape[2] // stride, dim_out)


def _configuration(
    x: Tensor, weights: HieraBlockWeights, num_heads: int, window: int, pool: bool, *_: Any
) -> Hashable:
    dim_out = weights.proj.weight.shape[0]
    hidden = weights.fc1.weight.shape[0]
    dtypes = x.dtype, weights.norm1.weight.dtype, weights.qkv.weight.dtype
    return *x.shape[1:], dim_out, hidden, num_heads, window, pool, *dtypes


_OP = Op(
    "hiera_block",
    schema="(Tensor x, Tensor[] weights, int num_heads, int window, bool pool, float eps)"
    " -> Tensor",
    weights=HieraBlockWeights,
    reference=hiera_block_reference,
    result=_result,
    backends=(
        Backend(
            "triton",
            _triton_block,
            (
                on_one("cuda"),
                plain,
                no_grad,
                computes_in(*HALF),
                fits(_triton_refuses),
            ),
            kernels=("row_statistics", "linear", "window", "mlp"),
        ),
        Backend(
            "cpu",
            _native_block,
            (
                on_one("cpu"),
                plain,
                no_grad,
                stored_in(*FLOATS),
                fits(_refuses),
            ),
        ),
    ),
    rule=Rule(_configuration, first_rows(1)),
)
