"""FLOPs and bytes of a launch, computed from its arguments.

Only the work that the operation needs is counted, not what incomplete tiles waste.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sam2_fast.kernels.memory_slots import SLOT_NUM_TOKENS
from torch import Tensor

Arguments = Mapping[str, Any]


def launch_flops(kernel: str, arguments: Arguments) -> int:
    """FLOPs of the matrix products and convolutions of one launch; 0 for kernels that have none."""
    count = _FLOPS.get(kernel)
    return 0 if count is None else int(count(arguments))


def launch_bytes(arguments: Arguments) -> int:
    """Bytes of all tensor arguments of a launch, each counted once."""
    tensors = {x.data_ptr(): x for x in arguments.values() if isinstance(x, Tensor)}
    return sum(x.numel() * x.element_size() for x in tensors.values())


def _attend(a: Arguments) -> int:
    """FLOPs of attention. Objects with different numbers of keys are counted one by one.

    For them `num_keys` is only an upper bound.
    """
    width = a["q"].shape[-1] + a["value_dim"]
    if a["RAGGED"]:
        return 2 * a["num_queries"] * int(a["first_keys"][-1]) * width
    return 2 * a["num_queries"] * a["k"].shape[0] * a["num_keys"] * width


def _window(a: Arguments) -> int:
    queries = a["qkv"].shape[0] * a["height"] * a["width"] // (4 if a["POOL"] else 1)
    return 4 * queries * a["window_height"] * a["window_width"] * a["heads"] * a["head_dim"]


def _token_to_image_attention(a: Arguments) -> int:
    return 4 * a["queries"].shape[0] * a["rows"] * a["count"] * a["DIM"]


def _image_to_token_attention(a: Arguments) -> int:
    return 4 * a["keys"].shape[0] * a["keys"].shape[1] * a["count"] * a["DIM"]


def _upscale_and_predict_masks(a: Arguments) -> int:
    """FLOPs of two transposed convolutions as products, then of one product for each mask."""
    dim = a["DIM"]
    upscale = 2 * dim * dim + 4 * 2 * (dim // 4) * (dim // 2)
    return a["image"].shape[0] * a["count"] * (upscale + 16 * 2 * a["MASKS"] * dim // 8)


def _token_step(a: Arguments) -> int:
    """FLOPs of the projections of the tokens, including those folded with the image's channels."""
    batch, tokens, dim = a["prompts"].shape
    self_attention = 8 * dim * dim + 4 * tokens * dim if a["SELF"] else 0
    to_image = 2 * dim * dim if a["TO_IMAGE"] else 0
    to_token = 4 * dim * dim if a["TO_TOKEN"] else 0
    return batch * tokens * (self_attention + to_image + to_token)


def _token_mlp(a: Arguments) -> int:
    batch, count, dim = a["tokens"].shape
    return 4 * batch * count * dim * a["hidden"]


def _token_to_image_output(a: Arguments) -> int:
    batch, _, count, dim = a["parts"].shape
    return 2 * batch * count * (dim * dim // 2) * 2


def _token_heads(a: Arguments) -> int:
    """FLOPs of the three layers of the IoU token and of each mask token."""
    batch, _, dim = a["tokens"].shape
    quality = a["hidden"] * (dim + a["hidden"] + a["iou_count"])
    return 2 * batch * (quality + a["num_masks"] * (2 * dim * dim + dim * dim // 8))


def _object_state(a: Arguments) -> int:
    batch, _, dim = a["tokens"].shape
    layers = sum(
        n * (dim + n + outs) for n, outs in ((a["presence_hidden"], 1), (a["pointer_hidden"], dim))
    )
    return 2 * batch * layers


def _down(a: Arguments) -> int:
    out = a["out"]
    return 2 * 9 * a["inner"] * out.numel()


_FLOPS: dict[str, Callable[[Arguments], int]] = {
    "linear_kernel": lambda a: 2 * a["rows"] * a["inner"] * a["outer"],
    "mlp_kernel": lambda a: 4 * a["rows"] * a["channels"] * a["hidden"],
    "window_kernel": _window,
    "attend_kernel": _attend,
    "project_kernel": lambda a: 2 * a["rows"] * a["weight"].numel(),
    "keys_kernel": lambda a: 2 * int(a["slots"][:, SLOT_NUM_TOKENS].sum()) * a["weight"].numel(),
    "token_step_kernel": _token_step,
    "token_mlp_kernel": _token_mlp,
    "token_to_image_output_kernel": _token_to_image_output,
    "token_heads_kernel": _token_heads,
    "object_state_kernel": _object_state,
    "token_to_image_attention_kernel": _token_to_image_attention,
    "image_to_token_attention_kernel": _image_to_token_attention,
    "upscale_and_predict_masks_kernel": _upscale_and_predict_masks,
    "first_kernel": lambda a: 2 * 9 * a["out"].numel(),
    "down_kernel": _down,
    "depthwise_kernel": lambda a: 2 * 49 * a["out"].numel(),
}
