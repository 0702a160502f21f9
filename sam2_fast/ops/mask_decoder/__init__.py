"""The mask decoder as one op.

Prompt tokens and image tokens attend to each other, the image is upscaled, and hypernetworks of the
mask tokens predict masks.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from sam2_fast.ops.core.autocast import compute_dtype
from sam2_fast.ops.core.cache import derive, for_cpu
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
from sam2_fast.ops.mask_decoder.reference import cell_matrix, mask_decoder_reference
from sam2_fast.ops.mask_decoder.triton_kernels import triton_decoder, triton_refuses
from sam2_fast.ops.mask_decoder.weights import MaskDecoderWeights as MaskDecoderWeights
from sam2_fast.proving.rules import Call, Rule, bits

__all__ = ["MaskDecoderWeights", "mask_decoder"]

Results = tuple[Tensor, Tensor, Tensor]


def mask_decoder(
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
    *,
    backend: str = "auto",
) -> Results:
    """Masks of B objects, their predicted IoU, and the final prompt tokens.

    image: [1 or B, h, w, C] fused features plus the embedding of a mask hint; with 1 its part of
        the first layer is computed once.
    mid, high: [1 or B, 2h, 2w, C / 4] and [1 or B, 4h, 4w, C / 8] finer features.
    position: [h * w, C] of the image tokens.
    prompts: [B, T, C] prompt tokens, which are also their own position.
    present: [B, T] bool, the tokens that exist, or None for all; all mask tokens must exist.
    weights: with a hypernetwork for each of M masks.
    Mask m is predicted by token first_mask_token + m; token iou_token predicts the IoU of the masks
    of the K tokens after it.
    best: predict only the mask of highest predicted IoU among the M masks (the first of equal
        ones); `iou` shows which one.
    backend: "auto", "triton", "cpu" or "torch".
    Returns logits [B, M or 1, 4h, 4w] and iou [B, K], float32 or wider, and tokens [B, T, C] in the
    dtype of prompts, zero for absent tokens (with "torch": unspecified).
    Raises ValueError for shapes that do not fit, BackendError if the named backend cannot run.
    Source: official `MaskDecoder.predict_masks`.
    """
    maps = image, mid, high, position
    _check_maps(*maps, prompts, present)
    _check_tokens(image, prompts, weights, num_heads, first_mask_token, iou_token)
    numbers = num_heads, first_mask_token, iou_token, best
    logits, iou, tokens = _OP(backend, *maps, prompts, present, weights, *numbers)
    return logits, iou, tokens


def _check_maps(
    image: Tensor,
    mid: Tensor,
    high: Tensor,
    position: Tensor,
    prompts: Tensor,
    present: Tensor | None,
) -> None:
    if image.ndim != 4 or prompts.ndim != 3:
        raise ValueError(
            "image, prompts: expected [1 or B, h, w, C] and [B, T, C], got "
            f"{tuple(image.shape)} and {tuple(prompts.shape)}"
        )
    images, height, width, dim = image.shape
    objects = prompts.shape[0]
    frames = mid.shape[0] if mid.ndim else 0
    if images not in (1, objects) or frames not in (1, objects):
        raise ValueError(
            f"image, mid: expected 1 or one for each of {objects} objects, got {images} and "
            f"{frames}"
        )
    token_mask = prompts[..., 0] if present is None else present
    expected = {
        "mid": (mid, (frames, 2 * height, 2 * width, dim // 4)),
        "high": (high, (frames, 4 * height, 4 * width, dim // 8)),
        "position": (position, (height * width, dim)),
        "prompts": (prompts, (objects, prompts.shape[1], dim)),
        "present": (token_mask, tuple(prompts.shape[:2])),
    }
    for name, (x, shape) in expected.items():
        if tuple(x.shape) != shape:
            raise ValueError(
                f"{name}: expected shape {shape} for image of shape {tuple(image.shape)}, got "
                f"{tuple(x.shape)}"
            )


def _check_tokens(
    image: Tensor,
    prompts: Tensor,
    weights: MaskDecoderWeights,
    num_heads: int,
    first_mask_token: int,
    iou_token: int,
) -> None:
    dim = image.shape[3]
    expected = weights.final_norm.weight.shape[0]
    if dim != expected:
        raise ValueError(f"image: expected the {expected} channels of the weights, got {dim}")
    if dim % 8 or num_heads < 1 or (dim // 2) % num_heads:
        raise ValueError(f"num_heads: expected a divisor of {dim // 2} channels, got {num_heads}")
    masks = len(weights.masks)
    count = prompts.shape[1]
    if first_mask_token < 0 or first_mask_token + masks > count:
        raise ValueError(
            f"first_mask_token: expected {masks} mask tokens among {count} prompts, got "
            f"{first_mask_token}"
        )
    values = weights.iou.linear3.bias.shape[0]
    last_value = first_mask_token + masks - iou_token - 1
    if not 0 <= iou_token < first_mask_token or last_value > values:
        raise ValueError(
            f"iou_token: expected an index below {first_mask_token}; weights.iou predicts "
            f"{values} values for the tokens after it, got {iou_token}"
        )


def _native_decoder(
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
    isa: str | None = None,
) -> Results:
    """Run the CPU kernel. isa: an older instruction set than this CPU's, for tests."""
    module = native()
    assert module is not None
    dtype = compute_dtype(weights.first_matrix)
    prepared = derive(
        weights, f"cpu {dtype}", lambda: module.MaskDecoderWeights(cpu_weights(weights, dtype))
    )
    image, mid, high = (x.detach().to(image.dtype).contiguous() for x in (image, mid, high))
    position, tokens = (x.detach().to(torch.float32).contiguous() for x in (position, prompts))
    count = prompts.shape[0]
    masks = 1 if best else len(weights.masks)
    logits = tokens.new_empty(count, masks, high.shape[1], high.shape[2])
    results = tokens.new_empty(prompts.shape)
    iou = tokens.new_empty(count, weights.iou.linear3.bias.shape[0])
    module.mask_decoder(
        image,
        mid,
        high,
        position,
        tokens,
        None if present is None else present.contiguous(),
        prepared,
        num_heads,
        first_mask_token,
        iou_token,
        best,
        logits,
        results,
        iou,
        torch.get_num_threads(),
        isa or module.cpu_isa(),
    )
    return logits, iou, results.to(prompts.dtype)


def cpu_weights(weights: MaskDecoderWeights, dtype: torch.dtype) -> MaskDecoderWeights:
    """Weights as the CPU kernel reads them: transposed convolutions as matrices."""
    w = for_cpu(weights, dtype)
    matrices = {
        f"{name}.weight": cell_matrix(up).contiguous()
        for name, up in (("up1", w.up1), ("up2", w.up2))
    }
    return w.converted(lambda leaf, x: matrices.get(leaf.name, x))


def _refuses(
    image: Tensor,
    mid: Tensor,
    high: Tensor,
    position: Tensor,
    prompts: Tensor,
    present: Tensor | None,
    weights: MaskDecoderWeights,
    num_heads: int,
    first_mask_token: int,
    *_: object,
) -> str | None:
    dim = image.shape[3]
    head = dim // 2 // num_heads
    hidden = weights.layers[0].fc1.bias.shape[0], weights.iou.linear1.bias.shape[0]
    if dim % 16 or head % 2 or head > 64 or any(width % 2 for width in hidden):
        return (
            f"image has {dim} channels, a head {head}, the MLPs {hidden}; supported: a multiple of "
            "16, an even number up to 64, even numbers"
        )
    last = first_mask_token + len(weights.masks)
    if present is not None and not bool(present[:, :last].all()):
        return "tokens up to the last mask token are marked absent; all of them must be present"
    return None


def _result(
    image: Tensor,
    mid: Tensor,
    high: Tensor,
    position: Tensor,
    prompts: Tensor,
    present: Tensor | None,
    weights: list[Tensor],
    num_heads: int,
    first_mask_token: int,
    iou_token: int,
    best: bool,
) -> Results:
    w = MaskDecoderWeights.unflatten(weights)
    objects = prompts.shape[0]
    dtype = torch.promote_types(image.dtype, torch.float32)
    masks = 1 if best else len(w.masks)
    logits = image.new_empty(objects, masks, high.shape[1], high.shape[2], dtype=dtype)
    iou = image.new_empty(objects, w.iou.linear3.bias.shape[0], dtype=dtype)
    return logits, iou, torch.empty_like(prompts, memory_format=torch.contiguous_format)


def _configuration(
    image: Tensor,
    mid: Tensor,
    high: Tensor,
    position: Tensor,
    prompts: Tensor,
    present: Tensor | None,
    weights: MaskDecoderWeights,
    num_heads: int,
    *tokens: Any,
) -> Hashable:
    count = bits(prompts.shape[1] - 1)
    options = count, present is None, len(weights.leaves()), num_heads, tokens
    dtypes = image.dtype, prompts.dtype, weights.first_matrix.dtype
    return *image.shape[1:], *options, *dtypes


def _sample(call: Call) -> Call:
    image, mid, high, position, prompts, present, *rest = call.arguments
    maps = (x[:4] for x in (image, mid, high))
    present = None if present is None else present[:4]
    return Call((*maps, position, prompts[:4], present, *rest), call.named)


def _align(call: Call, results: tuple[Any, ...]) -> tuple[Any, ...]:
    """The comparable part of results, in equal shapes.

    Tokens that are not present are unspecified. With `best`, masks are compared only if all results
    chose the same one: rounding may decide between equally good ones.
    """
    present, weights, _, first_mask, iou_token, best = call.arguments[5:11]
    if present is not None:
        results = tuple((m, i, t.where(present[..., None], 0)) for m, i, t in results)
    if not best:
        return results
    start = first_mask - iou_token - 1
    masks = len(weights.masks)
    choices = [iou[:, start : start + masks].argmax(-1) for _, iou, _ in results]
    same = torch.stack([choice == choices[0] for choice in choices]).all(0)
    return tuple((logits[same], iou, tokens) for logits, iou, tokens in results)


_OP = Op(
    "mask_decoder",
    schema="(Tensor image, Tensor mid, Tensor high, Tensor position, Tensor prompts, "
    "Tensor? present, Tensor[] weights, int num_heads, int first_mask_token, int iou_token, "
    "bool best) -> (Tensor, Tensor, Tensor)",
    weights=MaskDecoderWeights,
    reference=mask_decoder_reference,
    result=_result,
    backends=(
        Backend(
            "triton",
            triton_decoder,
            (
                on_one("cuda"),
                plain,
                no_grad,
                computes_in(*HALF),
                fits(triton_refuses),
            ),
            kernels=(
                "token_step",
                "token_to_image_attention",
                "token_to_image_output",
                "token_mlp",
                "image_to_token_attention",
                "token_heads",
                "upscale_and_predict_masks",
            ),
        ),
        Backend(
            "cpu",
            _native_decoder,
            (
                on_one("cpu"),
                plain,
                no_grad,
                stored_in(*FLOATS),
                fits(_refuses),
            ),
        ),
    ),
    rule=Rule(_configuration, _sample, align=_align),
)
