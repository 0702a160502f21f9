"""The mask decoder as one op: prompt tokens and image tokens attend to each other, the image is upscaled, mask tokens draw masks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import sam2_fast.ops.object_heads  # noqa: F401  the op that follows, registered with this one
from sam2_fast.ops.mask_decoder_reference import BODY, HEAD, mask_decoder_reference
from sam2_fast.ops.mask_decoder_triton import triton_decoder, triton_refuses
from sam2_fast.ops.native import is_plain, native, no_cpu, no_triton, wants_gradients
from sam2_fast.ops.native_weights import mask_decoder_weights
from sam2_fast.ops.registry import Implementation, choose, execute, record_as, register

_library = torch.library.Library("sam2_fast", "FRAGMENT")
_STORED = (torch.float32, torch.bfloat16, torch.float16)
_ATTENTION = ("q", "k", "v", "out")
LAYER = (
    *(f"self {part}" for part in _ATTENTION), "norm1", *(f"token to image {part}" for part in _ATTENTION), "norm2", "fc1", "fc2", "norm3",
    "norm4", *(f"image to token {part}" for part in _ATTENTION),
)  # fmt: skip
"""What a layer's 36 tensors are, weight and bias each, in this order."""
REST = (*(f"last {part}" for part in _ATTENTION), "last norm", "up1", "up norm", "up2")
"""And the 16 after the two layers; then the three linear layers that predict IoU, and each mask's three."""


def mask_decoder(
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
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Masks of B objects, how good they are, and what their prompt tokens became.

    image: [1 or B, h, w, C] fused features plus the embedding of a mask hint; with 1 its share of the first layer is computed once.
    mid, high: [1 or B, 2h, 2w, C / 4] and [1 or B, 4h, 4w, C / 8]; position: [h * w, C] of the image's tokens.
    prompts: [B, T, C] tokens, their own position too; present: [B, T] bool, tokens that exist (None: all); all mask tokens must.
    weights: 88 tensors as `LAYER` (twice) and `REST` name them, 6 that predict IoU (C -> H -> H -> K), then 6 for each of M masks (C -> C
        -> C -> C / 8); "up1" [C, C] and "up2" [C / 2, C / 4] have rows by place in the 2 x 2 cell (dy, dx), then channel, and biases
        [C / 4] and [C / 8].
    Mask m is drawn by token first_mask_token + m; token iou_token says how good the K masks are whose tokens follow it.
    best: draw of the M masks the one of highest predicted IoU alone (the first of equals): `iou` tells which.
    backend: "auto", "triton", "cpu" or "torch".
    Returns logits [B, M or 1, 4h, 4w] and iou [B, K], float32 or wider, and tokens [B, T, C] in the dtype of prompts, zero where not
    present (torch: what comes out there). Raises ValueError for shapes that do not fit, BackendError where the named backend cannot run.
    Source: official `MaskDecoder.predict_masks`.
    """
    arguments = (image, mid, high, position, prompts, present, weights, num_heads, first_mask_token, iou_token, best)
    _check(*arguments)
    logits, iou, tokens = execute("mask_decoder", backend, _tensors(*arguments[:7]), *arguments)
    return logits, iou, tokens


def _tensors(
    image: Tensor, mid: Tensor, high: Tensor, position: Tensor, prompts: Tensor, present: Tensor | None, weights: Sequence[Tensor]
) -> list[Tensor]:
    return [image, mid, high, position, prompts, *weights, *([] if present is None else [present])]


def _check(
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
) -> None:
    if image.ndim != 4 or prompts.ndim != 3:
        raise ValueError(f"image, prompts: expected [1 or B, h, w, C] and [B, T, C], got {tuple(image.shape)} and {tuple(prompts.shape)}")
    (images, height, width, dim), objects = image.shape, prompts.shape[0]
    frames = mid.shape[0] if mid.ndim else 0
    if images not in (1, objects) or frames not in (1, objects):
        raise ValueError(f"image, mid: expected 1 or one for each of {objects} objects, got {images} and {frames}")
    expected = {
        "mid": (mid, (frames, 2 * height, 2 * width, dim // 4)),
        "high": (high, (frames, 4 * height, 4 * width, dim // 8)),
        "position": (position, (height * width, dim)),
        "prompts": (prompts, (objects, prompts.shape[1], dim)),
        "present": (prompts[..., 0] if present is None else present, tuple(prompts.shape[:2])),
    }
    for name, (x, shape) in expected.items():
        if tuple(x.shape) != shape:
            raise ValueError(f"{name}: expected shape {shape} for image of shape {tuple(image.shape)}, got {tuple(x.shape)}")
    masks = _masks(weights)
    if masks < 1 or len(weights) != BODY + HEAD * (1 + masks):
        raise ValueError(f"weights: expected {BODY + HEAD} tensors and {HEAD} for each mask, got {len(weights)}")
    if dim % 8 or num_heads < 1 or (dim // 2) % num_heads:
        raise ValueError(f"num_heads: expected a divisor of {dim // 2} channels, got {num_heads}")
    if first_mask_token < 0 or first_mask_token + masks > prompts.shape[1]:
        raise ValueError(f"first_mask_token: expected {masks} mask tokens among {prompts.shape[1]} prompts, got {first_mask_token}")
    values = weights[BODY + 4].shape[0]
    if not 0 <= iou_token < first_mask_token or first_mask_token + masks - iou_token - 1 > values:
        raise ValueError(f"iou_token: expected one before {first_mask_token} with {values} values for the masks after it, got {iou_token}")
    _check_weights(weights, dim)


def _masks(weights: Sequence[Tensor]) -> int:
    return (len(weights) - BODY) // HEAD - 1


def _check_weights(weights: Sequence[Tensor], dim: int) -> None:
    hidden, iou_hidden, values = (weights[i].shape[0] for i in (20, BODY, BODY + 4))
    square, down, up = [(dim, dim), (dim,)], [(dim // 2, dim), (dim // 2,)], [(dim, dim // 2), (dim,)]
    norm, narrow = [(dim,), (dim,)], [*down * 3, *up]
    mlp = [(hidden, dim), (hidden,), (dim, hidden), (dim,)]
    layer = [*square * 4, *norm, *narrow, *norm, *mlp, *norm, *norm, *narrow]
    upscaling = [(dim, dim), (dim // 4,), (dim // 4,), (dim // 4,), (dim // 2, dim // 4), (dim // 8,)]
    iou = [(iou_hidden, dim), (iou_hidden,), (iou_hidden, iou_hidden), (iou_hidden,), (values, iou_hidden), (values,)]
    mask = [*square * 2, (dim // 8, dim), (dim // 8,)]
    shapes = [*layer * 2, *narrow, *norm, *upscaling, *iou, *mask * _masks(weights)]
    for i, (weight, shape) in enumerate(zip(weights, shapes, strict=True)):
        if tuple(weight.shape) != shape:
            raise ValueError(f"weights: {_name(i)}: expected shape {shape}, got {tuple(weight.shape)}")


def _name(i: int) -> str:
    part = ("weight", "bias")[i % 2]
    if i < 72:
        return f"layer {i // 36}, {LAYER[i % 36 // 2]}.{part}"
    if i < BODY:
        return f"{REST[(i - 72) // 2]}.{part}"
    head, layer = divmod(i - BODY, HEAD)
    return f"{f'mask {head - 1}' if head else 'predicted IoU'}, layer {layer // 2}.{part}"


def _native_decoder(
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
    isa: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`isa`: run with a narrower instruction set than this CPU's, for tests."""
    module = native()
    assert module is not None
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else weights[0].dtype
    given = [w.detach().to(dtype if w.ndim == 2 else torch.float32).contiguous() for w in weights]
    image, mid, high = (x.detach().to(image.dtype).contiguous() for x in (image, mid, high))
    position, tokens = (x.detach().to(torch.float32).contiguous() for x in (position, prompts))
    logits = tokens.new_empty(prompts.shape[0], 1 if best else _masks(weights), high.shape[1], high.shape[2])
    found, iou = tokens.new_empty(prompts.shape), tokens.new_empty(prompts.shape[0], weights[BODY + 4].shape[0])
    exist = None if present is None else present.contiguous()
    held = module.MaskDecoderWeights(mask_decoder_weights(given))
    module.mask_decoder(
        image, mid, high, position, tokens, exist, held, num_heads, first_mask_token, iou_token, best, logits, found, iou,
        torch.get_num_threads(), isa or module.cpu_isa(),
    )  # fmt: skip
    return logits, iou, found.to(prompts.dtype)


def _refuses(
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
    tensors = _tensors(image, mid, high, position, prompts, present, weights)
    if any(t.device.type != "cpu" for t in tensors):
        return f"tensors are on {', '.join(sorted({str(t.device) for t in tensors}))}, it takes cpu tensors"
    if not is_plain(*tensors):
        return f"tensors are {', '.join(sorted({type(t).__name__ for t in tensors}))}, it takes plain tensors"
    if wants_gradients(*tensors):
        return "gradients are wanted, it has none"
    kinds = {t.dtype for t in tensors if t is not present}
    if not kinds <= set(_STORED) or len({w.dtype for w in weights if w.ndim == 2}) > 1:
        return f"dtypes are {', '.join(sorted(map(str, kinds)))}, it takes float32, bfloat16 or float16, all matrices alike"
    head = image.shape[3] // 2 // num_heads
    if image.shape[3] % 16 or head % 2 or head > 64 or weights[20].shape[0] % 2 or weights[BODY].shape[0] % 2:
        return f"{image.shape[3]} channels, {head} a head: it takes channels in sixteens, even heads up to 64 and even hidden widths"
    if present is not None and not bool(present[:, : first_mask_token + _masks(weights)].all()):
        return "tokens before the last mask token are marked absent, it wants them"
    return None


register(Implementation("mask_decoder", "triton", triton_decoder, triton_refuses), no_triton)
register(Implementation("mask_decoder", "cpu", _native_decoder, _refuses), no_cpu)
register(Implementation("mask_decoder", "torch", mask_decoder_reference, lambda *_: None), lambda: None)


def _dispatch(
    image: Tensor, mid: Tensor, high: Tensor, position: Tensor, prompts: Tensor, present: Tensor | None, weights: list[Tensor],
    num_heads: int, first_mask_token: int, iou_token: int, best: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    arguments = (image, mid, high, position, prompts, present, weights, num_heads, first_mask_token, iou_token, best)
    logits, iou, tokens = choose("mask_decoder", "auto", *arguments).run(*arguments)
    return logits.contiguous(), iou.contiguous(), tokens.contiguous()


_library.define(
    "mask_decoder(Tensor image, Tensor mid, Tensor high, Tensor position, Tensor prompts, Tensor? present, Tensor[] weights, "
    "int num_heads, int first_mask_token, int iou_token, bool best) -> (Tensor, Tensor, Tensor)"
)
_library.impl("mask_decoder", _dispatch, "CompositeExplicitAutograd")
record_as("mask_decoder", lambda *a: torch.ops.sam2_fast.mask_decoder(*a[:6], list(a[6]), *a[7:]))


@torch.library.register_fake("sam2_fast::mask_decoder", lib=_library)
def _(
    image: Tensor, mid: Tensor, high: Tensor, position: Tensor, prompts: Tensor, present: Tensor | None, weights: list[Tensor],
    num_heads: int, first_mask_token: int, iou_token: int, best: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    objects, wide = prompts.shape[0], torch.promote_types(image.dtype, torch.float32)
    logits = image.new_empty(objects, 1 if best else _masks(weights), high.shape[1], high.shape[2], dtype=wide)
    iou = image.new_empty(objects, weights[BODY + 4].shape[0], dtype=wide)
    return logits, iou, torch.empty_like(prompts, memory_format=torch.contiguous_format)
