"""The memory encoder as one op: a memory map from a mask and the features of its frame."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_fast.ops.core.autocast import compute_dtype
from sam2_fast.ops.core.cache import derive, for_cpu
from sam2_fast.ops.core.layers import project
from sam2_fast.ops.core.layout import Leaf
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
from sam2_fast.ops.core.weights import Norm
from sam2_fast.ops.memory_encoder.weights import (
    FuserBlockWeights,
    MemoryEncoderWeights,
    PointConvolution,
)
from sam2_fast.proving.rules import Rule, first_rows

__all__ = ["MemoryEncoderWeights", "memory_encoder"]

_MAX_CHANNELS = 4096
_MAX_SIDE = 16384
_MAX_TRITON_CHANNELS = 256
MASK_SCALE = (20.0, -10.0)
"""Factor and offset of the mask probabilities, as the released models were trained."""
STRIDE = 16
"""Side of a token in pixels of the mask: four convolutions of stride 2."""


def memory_encoder(
    low: Tensor,
    logits: Tensor,
    weights: MemoryEncoderWeights,
    binarize: bool,
    eps: float = 1e-6,
    *,
    backend: str = "auto",
) -> Tensor:
    """Memory maps of B objects: [B, h * w, M].

    low: [1 or B, h, w, C] features of the frame; with 1 their projection is computed once for all
        objects.
    logits: [B, H, W] of the masks; resized to 16 h x 16 w (bilinear, align_corners=False) if they
        have another size.
    binarize: a logit above zero counts as 10, any other as -10; else as 20 * sigmoid(logit) - 10.
    eps: of all norms. backend: "auto", "triton", "cpu" or "torch".
    The result has the compute dtype: that of the matrices, or autocast's. "cpu" rounds only
    matrices and their inputs to it, and computes the first two convolutions, norms and sums in
    float32.
    Raises ValueError for shapes that do not fit, BackendError if the named backend cannot run.
    Source: official `_encode_new_memory` and `MemoryEncoder`.
    """
    _check(low, logits, weights)
    result: Tensor = _OP(backend, low, logits, weights, binarize, eps)
    return result


def _check(low: Tensor, logits: Tensor, weights: MemoryEncoderWeights) -> None:
    if low.ndim != 4 or logits.ndim != 3:
        raise ValueError(
            f"low, logits: expected [1 or B, h, w, C] and [B, H, W], got {tuple(low.shape)} and "
            f"{tuple(logits.shape)}"
        )
    objects = logits.shape[0]
    if low.shape[0] not in (1, objects):
        raise ValueError(
            f"low: expected 1 frame or one for each of {objects} objects, got {low.shape[0]}"
        )
    if 0 in logits.shape[1:]:
        raise ValueError(f"logits: expected a pixel or more, got shape {tuple(logits.shape)}")
    dim = weights.low_proj.bias.shape[0]
    if low.shape[3] != dim:
        raise ValueError(f"low: expected the {dim} channels of the weights, got {low.shape[3]}")


def memory_encoder_reference(
    low: Tensor, logits: Tensor, weights: MemoryEncoderWeights, binarize: bool, eps: float
) -> Tensor:
    """The definition, in torch."""
    size = (STRIDE * low.shape[1], STRIDE * low.shape[2])
    mask = logits[:, None]
    if tuple(mask.shape[2:]) != size:
        mask = F.interpolate(mask, size=size, mode="bilinear", align_corners=False)
    mask = ((mask > 0).to(mask.dtype) if binarize else mask.sigmoid()) * 20.0 - 10.0
    if not torch.is_autocast_enabled(mask.device.type):
        mask = mask.to(weights.convolutions[0].weight.dtype)
    for w in weights.convolutions:
        convolved = F.conv2d(mask, w.weight, w.bias, stride=2, padding=1)
        mask = F.gelu(_norm(convolved, w.norm, eps))
    x = _point(low.permute(0, 3, 1, 2), weights.low_proj) + _point(mask, weights.mask_proj)
    for block in weights.blocks:
        x = x + _fuse(x, block, eps)
    return _point(x, weights.out_proj).flatten(2).transpose(1, 2)


def _point(x: Tensor, w: PointConvolution) -> Tensor:
    return F.conv2d(x, w.weight, w.bias)


def _fuse(x: Tensor, w: FuserBlockWeights, eps: float) -> Tensor:
    """The residual branch of a block. x: [B, C, h, w] -> the same shape."""
    inner = F.conv2d(x, w.depthwise.weight, w.depthwise.bias, padding=3, groups=x.shape[1])
    inner = _norm(inner, w.norm, eps).permute(0, 2, 3, 1)
    hidden = F.gelu(project(inner, w.fc1))
    return (w.gamma * project(hidden, w.fc2)).permute(0, 3, 1, 2)


def _norm(x: Tensor, norm: Norm, eps: float) -> Tensor:
    """Layer norm over the channels of [B, C, H, W]."""
    centred = x - x.mean(1, keepdim=True)
    x = centred / (centred.square().mean(1, keepdim=True) + eps).sqrt()
    return norm.weight[:, None, None] * x + norm.bias[:, None, None]


def _native_encoder(
    low: Tensor,
    logits: Tensor,
    weights: MemoryEncoderWeights,
    binarize: bool,
    eps: float,
    isa: str | None = None,
) -> Tensor:
    """Run the CPU kernel. isa: an older instruction set than this CPU's, for tests."""
    module = native()
    assert module is not None
    dtype = compute_dtype(weights.first_matrix)
    prepared = derive(
        weights, f"cpu {dtype}", lambda: module.MemoryEncoderWeights(cpu_weights(weights, dtype))
    )
    tokens = low.shape[1] * low.shape[2]
    memory_dim = weights.out_proj.bias.shape[0]
    out = low.new_empty(logits.shape[0], tokens, memory_dim, dtype=dtype)
    module.memory_encoder(
        low.detach().contiguous(),
        logits.detach().to(torch.float32).contiguous(),
        prepared,
        out,
        binarize,
        eps,
        torch.get_num_threads(),
        isa or module.cpu_isa(),
    )
    return out


def cpu_weights(weights: MemoryEncoderWeights, dtype: torch.dtype) -> MemoryEncoderWeights:
    """Weights as the CPU kernel reads them: convolutions as matrices.

    Their columns are ordered by position in the kernel window, then by input channel.
    """

    def as_matrix(leaf: Leaf, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1).flatten(1).contiguous() if x.ndim == 4 else x

    return for_cpu(weights, dtype).converted(as_matrix)


def _refuses(
    low: Tensor, logits: Tensor, weights: MemoryEncoderWeights, binarize: bool, eps: float
) -> str | None:
    hidden = weights.blocks[0].fc1.bias.shape[0]
    memory_dim = weights.out_proj.bias.shape[0]
    widths = [low.shape[3], hidden, *(w.bias.shape[0] for w in weights.convolutions)]
    even = all(n % 2 == 0 and 0 < n <= _MAX_CHANNELS for n in widths)
    if not even or not 0 < memory_dim <= _MAX_CHANNELS:
        return (
            f"layers have {widths} channels, memories {memory_dim}; supported: even numbers for "
            f"layers, both up to {_MAX_CHANNELS}"
        )
    sides = [*low.shape[1:3], *logits.shape[1:]]
    if max(sides) > _MAX_SIDE:
        return f"sides of low and logits are {sides}; supported: up to {_MAX_SIDE}"
    return None


def _triton_encoder(
    low: Tensor, logits: Tensor, weights: MemoryEncoderWeights, binarize: bool, eps: float
) -> Tensor:
    """Launch the Triton kernels of the memory encoder.

    One launch each: four convolutions with their norms; two projections; for each block a
    convolution and two linear layers; the last projection.
    """
    from sam2_fast.kernels.linear import GELU, linear
    from sam2_fast.kernels.memory_encoder import (
        depthwise_convolution,
        downsample,
        first_convolution,
    )

    dtype = compute_dtype(weights.first_matrix)
    with torch.no_grad():
        convolutions, layers, blocks = derive(
            weights, f"triton {dtype}", lambda: _prepared(weights, dtype)
        )
        objects = len(logits)
        dim = low.shape[3]
        height, width = low.shape[1:3]
        size = STRIDE * height, STRIDE * width
        x = first_convolution(
            logits.detach().contiguous(), size, convolutions[0], binarize, eps, dtype
        )
        for convolution in convolutions[1:]:
            x = downsample(x, convolution, eps)
        frame = linear(low.detach().contiguous().view(-1, dim), layers["low"])
        frame = frame.view(len(low), -1, dim).expand(objects, -1, -1).contiguous().view(-1, dim)
        tokens = linear(x.view(-1, x.shape[3]), layers["mask"], residual=frame)
        for convolution, fc1, fc2, gamma in blocks:
            maps = tokens.view(objects, height, width, dim)
            inner = depthwise_convolution(maps, convolution, eps, dtype).view(-1, dim)
            hidden = linear(inner, fc1, activation=GELU)
            tokens = linear(hidden, fc2, gamma=gamma, residual=tokens)
        return linear(tokens, layers["out"]).view(objects, height * width, -1)


def _prepared(
    weights: MemoryEncoderWeights, dtype: torch.dtype
) -> tuple[list[Any], dict[str, Any], list[tuple[Any, ...]]]:
    """Convolutions, linear layers and fuser blocks as the Triton kernels read them.

    Weights of convolutions are ordered by position in the kernel window, then by input channel.
    """
    from sam2_fast.kernels.linear import Layer
    from sam2_fast.kernels.memory_encoder import Convolution

    def channels_last(weight: Tensor) -> Tensor:
        return weight.contiguous(memory_format=torch.channels_last)

    w = weights.converted(lambda leaf, x: x.detach().to(dtype) if leaf.matrix else x.detach())
    first = w.convolutions[0]
    by_position = first.weight.flatten(1).contiguous()
    norm = first.norm
    convolutions = [Convolution(by_position, first.bias, norm.weight, norm.bias, first.weight)]
    for layer in w.convolutions[1:]:
        by_position = layer.weight.permute(2, 3, 1, 0).flatten(0, 1).contiguous()
        plain_weight = channels_last(layer.weight)
        norm = layer.norm
        convolutions.append(
            Convolution(by_position, layer.bias, norm.weight, norm.bias, plain_weight)
        )
    projections = {"mask": w.mask_proj, "low": w.low_proj, "out": w.out_proj}
    layers = {
        name: Layer(projection.weight.flatten(1).contiguous(), projection.bias)
        for name, projection in projections.items()
    }
    blocks = []
    for block in w.blocks:
        by_position = block.depthwise.weight.flatten(1).t().contiguous()
        plain_weight = channels_last(block.depthwise.weight)
        norm = block.norm
        convolution = Convolution(
            by_position, block.depthwise.bias, norm.weight, norm.bias, plain_weight
        )
        fc1, fc2 = (Layer(layer.weight, layer.bias) for layer in (block.fc1, block.fc2))
        blocks.append((convolution, fc1, fc2, block.gamma))
    return convolutions, layers, blocks


def _triton_refuses(
    low: Tensor, logits: Tensor, weights: MemoryEncoderWeights, binarize: bool, eps: float
) -> str | None:
    widest = max(low.shape[3], *(w.bias.shape[0] for w in weights.convolutions))
    if widest <= _MAX_TRITON_CHANNELS and 0 not in (*low.shape, *logits.shape):
        return None
    return (
        f"low has shape {tuple(low.shape)}, logits {tuple(logits.shape)}, the widest layer "
        f"{widest} channels; supported: at least one token and one object, up to "
        f"{_MAX_TRITON_CHANNELS} channels"
    )


def _result(
    low: Tensor, logits: Tensor, weights: list[Tensor], binarize: bool, eps: float
) -> Tensor:
    w = MemoryEncoderWeights.unflatten(weights)
    tokens = low.shape[1] * low.shape[2]
    shape = logits.shape[0], tokens, w.out_proj.bias.shape[0]
    return low.new_empty(shape, dtype=compute_dtype(w.first_matrix))


def _configuration(
    low: Tensor, logits: Tensor, weights: MemoryEncoderWeights, binarize: bool, *_: Any
) -> Hashable:
    resized = tuple(logits.shape[1:]) != tuple(STRIDE * n for n in low.shape[1:3])
    first, last = weights.first_convolutions, weights.last_convolutions
    layers = [*weights.convolutions, weights.out_proj]
    widths = tuple(layer.weight.shape[0] for layer in layers)
    count = len(weights.leaves())
    dtypes = low.dtype, logits.dtype, first[0].weight.dtype, last[0].weight.dtype
    return *low.shape[1:], *widths, count, resized, binarize, *dtypes


_OP = Op(
    "memory_encoder",
    schema="(Tensor low, Tensor logits, Tensor[] weights, bool binarize, float eps) -> Tensor",
    weights=MemoryEncoderWeights,
    reference=memory_encoder_reference,
    result=_result,
    backends=(
        Backend(
            "triton",
            _triton_encoder,
            (
                on_one("cuda"),
                plain,
                no_grad,
                computes_in(*HALF),
                fits(_triton_refuses),
            ),
            kernels=("first", "down", "depthwise", "linear"),
        ),
        Backend(
            "cpu",
            _native_encoder,
            (
                on_one("cpu"),
                plain,
                no_grad,
                stored_in(*FLOATS),
                fits(_refuses),
            ),
        ),
    ),
    rule=Rule(_configuration, first_rows(2), convolutions=True),
)
