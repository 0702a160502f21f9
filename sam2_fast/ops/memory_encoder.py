"""The memory encoder as one op: a mask becomes tokens, meets the frame's features, and both become a memory map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_fast.ops.native import is_plain, native, no_cpu, no_triton, wants_gradients
from sam2_fast.ops.native_weights import memory_encoder_weights
from sam2_fast.ops.registry import Implementation, choose, execute, record_as, register
from sam2_fast.ops.weights import derive

_library = torch.library.Library("sam2_fast", "FRAGMENT")
_STORED = (torch.float32, torch.bfloat16, torch.float16)
_MAX_CHANNELS, _MAX_SIDE, _MAX_TRITON_CHANNELS = 4096, 16384, 256
STRIDE = 16
"""Pixels of the mask along a side of a token: four convolutions of stride 2."""
CONVOLUTION = ("weight", "bias", "norm.weight", "norm.bias")
PROJECTIONS = ("mask_proj.weight", "mask_proj.bias", "low_proj.weight", "low_proj.bias")
BLOCK = (
    "dwconv.weight", "dwconv.bias", "norm.weight", "norm.bias", "pwconv1.weight", "pwconv1.bias", "pwconv2.weight", "pwconv2.bias", "gamma",
)  # fmt: skip
"""What `memory_encoder` takes as `weights`: `CONVOLUTION` four times, `PROJECTIONS`, `BLOCK` for each block, out_proj's weight and bias."""
_MASK, _HEAD, _LIKE = len(CONVOLUTION) * 4, len(CONVOLUTION) * 4 + len(PROJECTIONS), 8  # the third convolution tells the matrices' dtype


def memory_encoder(
    low: Tensor, logits: Tensor, weights: Sequence[Tensor], binarize: bool, eps: float = 1e-6, *, backend: str = "auto"
) -> Tensor:
    """Memory maps of B objects: [B, h * w, M].

    low: [1 or B, h, w, C] features of the frame; with 1 their projection is computed once for all objects.
    logits: [B, H, W] of the masks, any size; resized to 16 h x 16 w (bilinear, align_corners=False) where they are not.
    weights: as `BLOCK` says: four convolutions [C_i, C_(i-1), 3, 3] of stride 2 from C_0 = 1, each with a norm over channels and GELU;
        mask_proj [C, C_4] and low_proj [C, C] as 1 x 1 convolutions; blocks of a depthwise [C, 1, 7, 7], pwconv1 [F, C], pwconv2 [C, F],
        gamma [C]; out_proj [M, C, 1, 1]. Convolutions lying channels_last in memory are read in place.
    binarize: a logit above zero counts as 10, any other as -10; else as 20 * sigmoid(logit) - 10. eps: of all norms.
    backend: "auto", "triton", "cpu" or "torch". The result has the dtype of the matrices, under autocast its dtype; "cpu" rounds only
        matrices and what they multiply to it, and computes the first two convolutions, norms and sums in float32.
    Raises ValueError for shapes that do not fit, BackendError where the named backend cannot run.
    Source: official `_encode_new_memory` and `MemoryEncoder`.
    """
    _check(low, logits, weights)
    return execute("memory_encoder", backend, (low, logits, *weights), low, logits, weights, binarize, eps)


def _check(low: Tensor, logits: Tensor, weights: Sequence[Tensor]) -> None:
    if low.ndim != 4 or logits.ndim != 3:
        raise ValueError(f"low, logits: expected [1 or B, h, w, C] and [B, H, W], got {tuple(low.shape)} and {tuple(logits.shape)}")
    if low.shape[0] not in (1, logits.shape[0]):
        raise ValueError(f"low: expected 1 frame or one for each of {logits.shape[0]} objects, got {low.shape[0]}")
    if 0 in logits.shape[1:]:
        raise ValueError(f"logits: expected a pixel or more, got shape {tuple(logits.shape)}")
    blocks = (len(weights) - _HEAD - 2) // len(BLOCK)
    if blocks < 1 or len(weights) != _HEAD + len(BLOCK) * blocks + 2:
        raise ValueError(f"weights: expected {_HEAD + 2} tensors and {len(BLOCK)} for each block, one or more, got {len(weights)}")
    dim, hidden, before = low.shape[3], weights[_HEAD + 4].shape[0], 1
    shapes: list[tuple[int, ...]] = []
    for i in range(4):
        channels = weights[4 * i].shape[0]
        shapes += [(channels, before, 3, 3), *[(channels,)] * 3]
        before = channels
    block = [(dim, 1, 7, 7), (dim,), (dim,), (dim,), (hidden, dim), (hidden,), (dim, hidden), (dim,), (dim,)]
    out = weights[-2].shape[0]
    shapes += [(dim, before, 1, 1), (dim,), (dim, dim, 1, 1), (dim,), *block * blocks, (out, dim, 1, 1), (out,)]
    for i, (weight, shape) in enumerate(zip(weights, shapes, strict=True)):
        if tuple(weight.shape) != shape:
            raise ValueError(f"weights: {_name(i, len(weights))}: expected shape {shape}, got {tuple(weight.shape)}")


def _name(i: int, count: int) -> str:
    if i < _MASK:
        return f"convolution {i // 4}, {CONVOLUTION[i % 4]}"
    if i < _HEAD:
        return PROJECTIONS[i - _MASK]
    block, part = divmod(i - _HEAD, len(BLOCK))
    return f"out_proj.{('weight', 'bias')[i - count + 2]}" if i >= count - 2 else f"block {block}, {BLOCK[part]}"


def matrices(weights: Sequence[Tensor]) -> list[int]:
    """Which of `weights` the kernel reads in the dtype of products: linear layers, all but the first two convolutions."""
    blocks = range(_HEAD, len(weights) - 2, len(BLOCK))
    return [8, 12, _MASK, _MASK + 2, *(at + part for at in blocks for part in (4, 6)), len(weights) - 2]


def memory_encoder_reference(low: Tensor, logits: Tensor, weights: Sequence[Tensor], binarize: bool, eps: float) -> Tensor:
    """The definition, in torch."""
    size = (STRIDE * low.shape[1], STRIDE * low.shape[2])
    mask = logits[:, None]
    if tuple(mask.shape[2:]) != size:
        mask = F.interpolate(mask, size=size, mode="bilinear", align_corners=False)
    mask = ((mask > 0).to(mask.dtype) if binarize else mask.sigmoid()) * 20.0 - 10.0
    if not torch.is_autocast_enabled(mask.device.type):
        mask = mask.to(weights[0].dtype)
    for i in range(0, _MASK, 4):
        mask = F.gelu(_norm(F.conv2d(mask, weights[i], weights[i + 1], stride=2, padding=1), weights[i + 2], weights[i + 3], eps))
    mask_weight, mask_bias, low_weight, low_bias = weights[_MASK:_HEAD]
    x = F.conv2d(low.permute(0, 3, 1, 2), low_weight, low_bias) + F.conv2d(mask, mask_weight, mask_bias)
    for at in range(_HEAD, len(weights) - 2, len(BLOCK)):
        w = weights[at : at + len(BLOCK)]
        inner = _norm(F.conv2d(x, w[0], w[1], padding=3, groups=x.shape[1]), w[2], w[3], eps).permute(0, 2, 3, 1)
        inner = w[8] * F.linear(F.gelu(F.linear(inner, w[4], w[5])), w[6], w[7])
        x = x + inner.permute(0, 3, 1, 2)
    return F.conv2d(x, weights[-2], weights[-1]).flatten(2).transpose(1, 2)


def _norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Layer norm over the channels of [B, C, H, W]."""
    centred = x - x.mean(1, keepdim=True)
    x = centred / (centred.square().mean(1, keepdim=True) + eps).sqrt()
    return weight[:, None, None] * x + bias[:, None, None]


def _products(weights: Sequence[Tensor]) -> torch.dtype:
    device = weights[_LIKE].device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weights[_LIKE].dtype


def _native_encoder(low: Tensor, logits: Tensor, weights: Sequence[Tensor], binarize: bool, eps: float, isa: str | None = None) -> Tensor:
    """`isa`: run with a narrower instruction set than this CPU's, for tests."""
    module = native()
    assert module is not None
    dtype, narrow = _products(weights), matrices(weights)
    given = []
    for i, weight in enumerate(weights):
        w = weight.detach().to(dtype if i in narrow else torch.float32)
        # columns by place, then channel
        given.append(w.permute(0, 2, 3, 1).flatten(1).contiguous() if w.ndim == 4 else w.contiguous())
    out = torch.empty(logits.shape[0], low.shape[1] * low.shape[2], weights[-2].shape[0], dtype=dtype, device=low.device)
    mask = logits.detach().to(torch.float32).contiguous()
    held = module.MemoryEncoderWeights(memory_encoder_weights(given))
    module.memory_encoder(low.detach().contiguous(), mask, held, out, binarize, eps, torch.get_num_threads(), isa or module.cpu_isa())
    return out


def _refuses(low: Tensor, logits: Tensor, weights: Sequence[Tensor], binarize: bool, eps: float) -> str | None:
    tensors = (low, logits, *weights)
    if any(t.device.type != "cpu" for t in tensors):
        return f"tensors are on {', '.join(sorted({str(t.device) for t in tensors}))}, it takes cpu tensors"
    if not is_plain(*tensors):
        return f"tensors are {', '.join(sorted({type(t).__name__ for t in tensors}))}, it takes plain tensors"
    if wants_gradients(*tensors):
        return "gradients are wanted, it has none"
    if any(t.dtype not in _STORED for t in tensors) or len({weights[i].dtype for i in matrices(weights)}) > 1:
        return f"dtypes are {', '.join(sorted({str(t.dtype) for t in tensors}))}, it takes float32, bfloat16 or float16, all matrices alike"
    widths = [low.shape[3], weights[_HEAD + 4].shape[0], *(weights[i].shape[0] for i in range(0, _MASK, 4))]
    if any(n % 2 or not 0 < n <= _MAX_CHANNELS for n in widths) or not 0 < weights[-2].shape[0] <= _MAX_CHANNELS:
        return f"widths are {widths} and {weights[-2].shape[0]}, it takes even ones, the last any, up to {_MAX_CHANNELS}"
    sides = [*low.shape[1:3], *logits.shape[1:]]
    return f"sides are {sides}, it takes up to {_MAX_SIDE}" if max(sides) > _MAX_SIDE else None


def _triton_encoder(low: Tensor, logits: Tensor, weights: Sequence[Tensor], binarize: bool, eps: float) -> Tensor:
    """Four convolutions with their norms, two projections; for each block a convolution and two linear layers; the last projection."""
    from sam2_fast.kernels.linear import GELU, linear
    from sam2_fast.kernels.memory_encoder import depthwise, down, first

    dtype = _products(weights)
    with torch.no_grad():
        convolutions, layers, blocks = derive(weights, f"memory_encoder {dtype}", lambda: _prepared(weights, dtype))
        (objects, dim), (height, width) = (len(logits), low.shape[3]), low.shape[1:3]
        x = first(logits.detach().contiguous(), (STRIDE * height, STRIDE * width), convolutions[0], binarize, eps, dtype)
        for convolution in convolutions[1:]:
            x = down(x, convolution, eps)
        frame = linear(low.detach().contiguous().view(-1, dim), layers["low"]).view(len(low), -1, dim)
        frame = frame.expand(objects, -1, -1).contiguous().view(-1, dim)
        tokens = linear(x.view(-1, x.shape[3]), layers["mask"], residual=frame)
        for convolution, wide, narrow, gamma in blocks:
            inner = depthwise(tokens.view(objects, height, width, dim), convolution, eps, dtype)
            tokens = linear(linear(inner.view(-1, dim), wide, activation=GELU), narrow, gamma=gamma, residual=tokens)
        return linear(tokens, layers["out"]).view(objects, height * width, -1)


def _prepared(weights: Sequence[Tensor], dtype: torch.dtype) -> tuple[list[Any], dict[str, Any], list[tuple[Any, ...]]]:
    """What the Triton kernels take: convolutions by place in the kernel, then input channel; linear layers."""
    from sam2_fast.kernels.linear import Layer
    from sam2_fast.kernels.memory_encoder import Convolution

    def channels_last(weight: Tensor) -> Tensor:
        return weight.contiguous(memory_format=torch.channels_last)

    narrow = matrices(weights)
    w = [t.detach().to(dtype) if i in narrow else t.detach() for i, t in enumerate(weights)]
    convolutions = [Convolution(w[0].flatten(1).contiguous(), w[1], w[2], w[3], w[0])]
    for i in (4, 8, 12):
        by_place = w[i].permute(2, 3, 1, 0).flatten(0, 1).contiguous()
        convolutions.append(Convolution(by_place, w[i + 1], w[i + 2], w[i + 3], channels_last(w[i])))
    ends = {"mask": _MASK, "low": _MASK + 2, "out": len(w) - 2}
    layers = {name: Layer(w[i].flatten(1).contiguous(), w[i + 1]) for name, i in ends.items()}
    blocks = []
    for at in range(_HEAD, len(w) - 2, len(BLOCK)):
        b = w[at : at + len(BLOCK)]
        by_place = b[0].flatten(1).t().contiguous()
        convolution = Convolution(by_place, b[1], b[2], b[3], channels_last(b[0]))
        blocks.append((convolution, Layer(b[4], b[5]), Layer(b[6], b[7]), b[8]))
    return convolutions, layers, blocks


def _triton_refuses(low: Tensor, logits: Tensor, weights: Sequence[Tensor], binarize: bool, eps: float) -> str | None:
    tensors = (low, logits, *weights)
    if any(t.device.type != "cuda" for t in tensors) or len({t.device for t in tensors}) > 1:
        return f"tensors are on {', '.join(sorted({str(t.device) for t in tensors}))}, it takes those of one cuda device"
    if not is_plain(*tensors):
        return f"tensors are {', '.join(sorted({type(t).__name__ for t in tensors}))}, it takes plain tensors"
    if wants_gradients(*tensors):
        return "gradients are wanted, it has none"
    if (dtype := _products(weights)) not in (torch.bfloat16, torch.float16):
        return f"products are in {dtype}, it takes bfloat16 or float16"
    if max(low.shape[3], *(weights[i].shape[0] for i in range(0, _MASK, 4))) > _MAX_TRITON_CHANNELS or 0 in (*low.shape, *logits.shape):
        return f"low is {tuple(low.shape)}, logits {tuple(logits.shape)}: it takes a token or more, up to {_MAX_TRITON_CHANNELS} channels"
    return None


register(Implementation("memory_encoder", "triton", _triton_encoder, _triton_refuses), no_triton)
register(Implementation("memory_encoder", "cpu", _native_encoder, _refuses), no_cpu)
register(Implementation("memory_encoder", "torch", memory_encoder_reference, lambda *_: None), lambda: None)


def _dispatch(low: Tensor, logits: Tensor, weights: list[Tensor], binarize: bool, eps: float) -> Tensor:
    return choose("memory_encoder", "auto", low, logits, weights, binarize, eps).run(low, logits, weights, binarize, eps).contiguous()


_library.define("memory_encoder(Tensor low, Tensor logits, Tensor[] weights, bool binarize, float eps) -> Tensor")
_library.impl("memory_encoder", _dispatch, "CompositeExplicitAutograd")
record_as("memory_encoder", lambda low, logits, weights, *rest: torch.ops.sam2_fast.memory_encoder(low, logits, list(weights), *rest))


@torch.library.register_fake("sam2_fast::memory_encoder", lib=_library)
def _(low: Tensor, logits: Tensor, weights: list[Tensor], binarize: bool, eps: float) -> Tensor:
    return low.new_empty(logits.shape[0], low.shape[1] * low.shape[2], weights[-2].shape[0], dtype=_products(weights))
