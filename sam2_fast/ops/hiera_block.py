"""One block of the Hiera trunk as one op: norm, attention in windows, residual, norm, MLP, residual."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_fast.ops.memory_table import products_dtype
from sam2_fast.ops.native import is_plain, native, no_cpu, no_triton, wants_gradients
from sam2_fast.ops.native_weights import hiera_block_weights
from sam2_fast.ops.norm import layer_norm
from sam2_fast.ops.registry import Implementation, choose, record_as, register, select
from sam2_fast.ops.weights import derive
from sam2_fast.ops.window_attention import window_attention, window_attention_reference

_library = torch.library.Library("sam2_fast", "FRAGMENT")
_STORED = (torch.float32, torch.bfloat16, torch.float16)
_MAX_WINDOW = 64
_MAX_HEAD, _MAX_TRITON_CHANNELS = 128, 4096
_MATRICES = (2, 4, 8, 10, 12)
WEIGHTS = (
    "norm1.weight", "norm1.bias", "qkv.weight", "qkv.bias", "proj.weight", "proj.bias", "norm2.weight", "norm2.bias",
    "fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias", "shortcut.weight", "shortcut.bias",
)  # fmt: skip
"""What `hiera_block` takes as `weights`, in this order; the last two only where queries are pooled."""


def hiera_block(
    x: Tensor,
    weights: Sequence[Tensor],
    num_heads: int,
    window: int,
    pool: bool = False,
    eps: float = 1e-6,
    *,
    backend: str = "auto",
    overwrite: bool = False,
) -> Tensor:
    """A pre-norm block: y = s(x) + attention(norm(x)); y + MLP(norm(y)) with GELU between the MLP's layers.

    x: [B, H, W, C]; weights: 12 tensors as `WEIGHTS` names them, of a block from C to C' channels: norms [C], [C']; qkv [3 C', C];
        proj [C', C']; fc1 [F, C']; fc2 [C', F] and their biases; 14 with the shortcut [C', C] where `pool`.
    window: attention stays inside windows of `window` x `window` tokens; windows that stick out of the grid attend to the outside
        as tokens of zeros, unmasked; 0: every token attends to all.
    pool: queries and the shortcut norm(x) -> s are max-pooled 2 x 2; else s(x) = x and C' = C.
    overwrite: x is not needed any more; where it can, the kernel writes to its memory, since fresh memory costs page faults.
    backend: "auto", "triton", "cpu" or "torch". Returns [B, H, W, C'], where pooled [B, H / 2, W / 2, C'], in the dtype of x. Under
        autocast products are computed in its dtype.
    Raises ValueError for shapes that do not fit, BackendError where the named backend cannot run.
    Source: official `MultiScaleBlock`.
    """
    _check(x, weights, num_heads, window, pool)
    run, given = select("hiera_block", backend, (x, *weights), x, weights, num_heads, window, pool, eps)
    if overwrite and not pool and run is _native_block and given[0].is_contiguous():
        return run(*given, out=given[0].detach())
    return run(*given)


def _check(x: Tensor, weights: Sequence[Tensor], num_heads: int, window: int, pool: bool) -> None:
    if x.ndim != 4:
        raise ValueError(f"x: expected shape [B, H, W, C], got {tuple(x.shape)}")
    if len(weights) != (14 if pool else 12):
        raise ValueError(f"weights: expected 12 tensors, 14 where queries are pooled, got {len(weights)} with pool={pool}")
    dim, dim_out, hidden = x.shape[3], weights[5].shape[0], weights[9].shape[0]
    shapes = [
        (dim,), (dim,), (3 * dim_out, dim), (3 * dim_out,), (dim_out, dim_out), (dim_out,), (dim_out,), (dim_out,),
        (hidden, dim_out), (hidden,), (dim_out, hidden), (dim_out,), (dim_out, dim), (dim_out,),
    ]  # fmt: skip
    for name, weight, shape in zip(WEIGHTS, weights, shapes, strict=False):
        if tuple(weight.shape) != shape:
            raise ValueError(f"weights: {name}: expected shape {shape} for x of shape {tuple(x.shape)}, got {tuple(weight.shape)}")
    if not pool and dim != dim_out:
        raise ValueError(f"weights: expected {dim} channels out where nothing is pooled, got {dim_out}")
    if num_heads < 1 or dim_out % num_heads:
        raise ValueError(f"num_heads: expected a divisor of {dim_out} channels, got {num_heads}")
    if window < 0:
        raise ValueError(f"window: expected tokens, or 0 for all, got {window}")


def hiera_block_reference(x: Tensor, weights: Sequence[Tensor], num_heads: int, window: int, pool: bool, eps: float) -> Tensor:
    """The definition, in torch."""
    norm1_weight, norm1_bias, qkv_weight, qkv_bias, proj_weight, proj_bias = weights[:6]
    norm2_weight, norm2_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias = weights[6:12]
    normed = layer_norm(x, norm1_weight, norm1_bias, eps)
    shortcut = x
    if pool:
        shortcut = F.max_pool2d(F.linear(normed, *weights[12:]).permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
    qkv = F.linear(normed, qkv_weight, qkv_bias)
    # zeros are padded after the norm, so a padded token is the projection's bias
    attend = window_attention_reference if qkv.device.type == "cpu" else window_attention  # which has a kernel for GPUs
    attended = attend(qkv, qkv_bias.to(qkv.dtype), num_heads, window, pool)
    y = shortcut + F.linear(attended, proj_weight, proj_bias)
    hidden = F.gelu(F.linear(layer_norm(y, norm2_weight, norm2_bias, eps), fc1_weight, fc1_bias))
    return y + F.linear(hidden, fc2_weight, fc2_bias)


def _native_block(
    x: Tensor,
    weights: Sequence[Tensor],
    num_heads: int,
    window: int,
    pool: bool,
    eps: float,
    isa: str | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """`isa`: run with a narrower instruction set than this CPU's, for tests. out: may be x where nothing is pooled.

    No window reads what another has written, and where every token attends to all, all are read first.
    """
    module = native()
    assert module is not None
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else weights[2].dtype
    given = [w.detach().to(dtype if i in _MATRICES else torch.float32).contiguous() for i, w in enumerate(weights)]
    by = 2 if pool else 1
    if out is None:
        out = torch.empty(x.shape[0], x.shape[1] // by, x.shape[2] // by, weights[5].shape[0], dtype=x.dtype, device=x.device)
    threads = torch.get_num_threads()
    held = module.HieraBlockWeights(hiera_block_weights(given))
    module.hiera_block(x.detach().contiguous(), held, out, num_heads, window, pool, eps, threads, isa or module.cpu_isa())
    return out


def _triton_block(x: Tensor, weights: Sequence[Tensor], num_heads: int, window: int, pool: bool, eps: float) -> Tensor:
    """Queries, keys and values; attention; projection; MLP (two layers, or one launch where channels are few), each a launch, besides
    the moments of the tokens, and with `pool` the shortcut."""
    from sam2_fast.kernels.choices import choose as choose_form
    from sam2_fast.kernels.hiera_block import MLP_CHANNELS, mlp
    from sam2_fast.kernels.linear import GELU, Layer, behind_norm, linear, measured_linear
    from sam2_fast.kernels.window_attention import window_attention as attend

    dtype = products_dtype(weights[2])

    def prepared() -> tuple[list[Tensor], dict[str, Layer]]:
        w = [t.detach().to(dtype if i in _MATRICES else t.dtype).contiguous() for i, t in enumerate(weights)]
        return w, _layers(w, eps)

    with torch.no_grad():
        w, layers = derive(weights, f"hiera_block {dtype}", prepared)
        batch, height, width, dim = x.shape
        tokens = x.detach().contiguous().view(-1, dim)
        normed = behind_norm(tokens, layers["qkv"])
        qkv = linear(normed[0], layers["qkv"], normed[1]).view(batch, height, width, -1)
        shortcut = linear(normed[0], layers["shortcut"], normed[1], dtype=x.dtype, width=width) if pool else tokens
        found = attend(qkv, w[3].to(dtype), num_heads, window, pool)
        dim_out = layers["proj"].weight.shape[0]
        small = dim_out <= MLP_CHANNELS
        if small:
            key = dtype.itemsize, x.element_size(), dim_out, height, width
            small = choose_form(x.device, "mlp", key, "one launch", ("two products",)) == "one launch"
        y, measured = measured_linear(found.flatten(0, 2), layers["proj"], residual=shortcut, dtype=x.dtype, measure=not small)
        if small:
            return mlp(y, (w[6], w[7]), (w[8], w[9], w[10], w[11]), eps).view(*found.shape)
        normed = behind_norm(y, layers["fc1"], measured)
        hidden = linear(normed[0], layers["fc1"], normed[1], activation=GELU)
        return linear(hidden, layers["fc2"], residual=y, dtype=x.dtype).view(*found.shape)


def _layers(w: Sequence[Tensor], eps: float) -> dict[str, Any]:
    """The block's linear layers as its Triton kernels take them, norms folded in. w: as `WEIGHTS`, matrices in the products' dtype."""
    from sam2_fast.kernels.linear import Layer, Norm, fold

    first, second = Norm(w[0], w[1], eps), Norm(w[6], w[7], eps)
    layers = {
        "qkv": fold(w[2], w[3], first), "proj": Layer(w[4], w[5]), "fc1": fold(w[8], w[9], second), "fc2": Layer(w[10], w[11])
    }  # fmt: skip
    return layers | ({"shortcut": fold(w[12], w[13], first)} if len(w) > 12 else {})


def _refuses(x: Tensor, weights: Sequence[Tensor], num_heads: int, window: int, pool: bool, eps: float) -> str | None:
    tensors = (x, *weights)
    if any(t.device.type != "cpu" for t in tensors):
        return f"x is on {x.device} and weights on {', '.join({str(w.device) for w in weights})}, it takes cpu tensors"
    if not is_plain(*tensors):
        return f"x and weights are {', '.join({type(t).__name__ for t in tensors})}, it takes plain tensors"
    if wants_gradients(*tensors):
        return "gradients are wanted, it has none"
    if any(t.dtype not in _STORED for t in tensors) or len({weights[i].dtype for i in _MATRICES[: 5 if pool else 4]}) > 1:
        return f"dtypes are {', '.join({str(t.dtype) for t in tensors})}, it takes float32, bfloat16 or float16, all matrices alike"
    head = weights[5].shape[0] // num_heads
    if head % 2 or x.shape[3] % 2 or weights[9].shape[0] % 2 or window > _MAX_WINDOW:
        return f"{x.shape[3]} channels, {head} a head, window {window}: it takes even widths and windows up to {_MAX_WINDOW}"
    if pool and (window < 2 or window % 2 or x.shape[1] % 2 or x.shape[2] % 2):
        return f"window {window} on {x.shape[1]} x {x.shape[2]} tokens: it pools even windows on even grids"
    return None


def _triton_refuses(x: Tensor, weights: Sequence[Tensor], num_heads: int, window: int, pool: bool, eps: float) -> str | None:
    tensors = (x, *weights)
    if any(t.device.type != "cuda" for t in tensors) or len({t.device for t in tensors}) > 1:
        return f"tensors are on {', '.join(sorted({str(t.device) for t in tensors}))}, it takes those of one cuda device"
    if not is_plain(*tensors):
        return f"x and weights are {', '.join({type(t).__name__ for t in tensors})}, it takes plain tensors"
    if wants_gradients(*tensors):
        return "gradients are wanted, it has none"
    dtype, head = products_dtype(weights[2]), weights[5].shape[0] // num_heads
    if dtype not in (torch.bfloat16, torch.float16):
        return f"products are in {dtype}, it takes bfloat16 or float16"
    if x.numel() == 0 or head > _MAX_HEAD or x.shape[3] > _MAX_TRITON_CHANNELS:
        return f"x is {tuple(x.shape)} with {head} channels a head: it takes a token or more, heads up to {_MAX_HEAD} channels"
    if pool and (window % 2 or window == 0 or x.shape[1] % 2 or x.shape[2] % 2):
        return f"window {window} on {x.shape[1]} x {x.shape[2]} tokens: it pools even windows on even grids"
    return None


register(Implementation("hiera_block", "triton", _triton_block, _triton_refuses), no_triton)
register(Implementation("hiera_block", "cpu", _native_block, _refuses), no_cpu)
register(Implementation("hiera_block", "torch", hiera_block_reference, lambda *_: None), lambda: None)


def _dispatch(x: Tensor, weights: list[Tensor], num_heads: int, window: int, pool: bool, eps: float) -> Tensor:
    return (
        choose("hiera_block", "auto", x, weights, num_heads, window, pool, eps).run(x, weights, num_heads, window, pool, eps).contiguous()
    )


_library.define("hiera_block(Tensor x, Tensor[] weights, int num_heads, int window, bool pool, float eps) -> Tensor")
_library.impl("hiera_block", _dispatch, "CompositeExplicitAutograd")
record_as("hiera_block", lambda x, weights, *rest: torch.ops.sam2_fast.hiera_block(x, list(weights), *rest))


@torch.library.register_fake("sam2_fast::hiera_block", lib=_library)
def _(x: Tensor, weights: list[Tensor], num_heads: int, window: int, pool: bool, eps: float) -> Tensor:
    by = 2 if pool else 1
    return x.new_empty(x.shape[0], x.shape[1] // by, x.shape[2] // by, weights[5].shape[0])
