"""Weights by name, as the native module reads them, from the flat lists in the order of each op's `WEIGHTS`. Temporary: until the ops
take their weights by name themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

from torch import Tensor


def hiera_block_weights(weights: Sequence[Tensor]) -> SimpleNamespace:
    """Of 12 tensors, or 14 with a shortcut."""
    given = iter(weights)
    found = SimpleNamespace(**_layers(given, "norm1", "qkv", "proj", "norm2", "fc1", "fc2"))
    found.shortcut = _layer(given) if len(weights) > 12 else None
    return _whole(found, given)


def memory_attention_weights(weights: Sequence[Tensor]) -> SimpleNamespace:
    """Of 26 tensors a layer and two of the last norm."""
    names = (
        "norm1", "self_q", "self_k", "self_v", "self_out", "norm2", "q", "k", "v", "out", "norm3", "linear1", "linear2",
    )  # fmt: skip
    given = iter(weights)
    layers = [SimpleNamespace(**_layers(given, *names)) for _ in range(len(weights) // (2 * len(names)))]
    return _whole(SimpleNamespace(layers=layers, norm=_layer(given)), given)


def memory_encoder_weights(weights: Sequence[Tensor]) -> SimpleNamespace:
    """Of 22 tensors and 9 for each block; matrices of two dimensions."""
    given = iter(weights)
    convolutions = [SimpleNamespace(weight=_next(given), bias=_next(given), norm=_layer(given)) for _ in range(4)]
    found = SimpleNamespace(convolutions=convolutions, **_layers(given, "mask_proj", "low_proj"), blocks=[])
    for _ in range((len(weights) - 22) // 9):
        block = SimpleNamespace(**_layers(given, "depthwise", "norm", "fc1", "fc2"), gamma=_next(given))
        found.blocks.append(block)
    found.out_proj = _layer(given)
    return _whole(found, given)


def mask_decoder_weights(weights: Sequence[Tensor]) -> SimpleNamespace:
    """Of 94 tensors and 6 for each mask."""
    given = iter(weights)

    def attention() -> SimpleNamespace:
        return SimpleNamespace(**_layers(given, "q", "k", "v", "out"))

    def layer() -> SimpleNamespace:
        return SimpleNamespace(
            self_attention=attention(), norm1=_layer(given), token_to_image=attention(),
            **_layers(given, "norm2", "fc1", "fc2", "norm3", "norm4"), image_to_token=attention(),
        )  # fmt: skip

    def mlp() -> SimpleNamespace:
        return SimpleNamespace(**_layers(given, "linear1", "linear2", "linear3"))

    found = SimpleNamespace(layers=[layer(), layer()], final_attention=attention())
    found.final_norm, found.up1, found.up_norm, found.up2, found.iou = *(_layer(given) for _ in range(4)), mlp()
    found.masks = [mlp() for _ in range((len(weights) - 94) // 6)]
    return _whole(found, given)


def _next(given: Iterator[Tensor]) -> Tensor:
    tensor = next(given, None)
    if tensor is None:
        raise ValueError("weights: expected more tensors")
    return tensor


def _layer(given: Iterator[Tensor]) -> SimpleNamespace:
    return SimpleNamespace(weight=_next(given), bias=_next(given))


def _layers(given: Iterator[Tensor], *names: str) -> dict[str, Any]:
    return {name: _layer(given) for name in names}


def _whole(found: SimpleNamespace, given: Iterator[Tensor]) -> SimpleNamespace:
    rest = len(list(given))
    if rest:
        raise ValueError(f"weights: expected fewer tensors, got {rest} more")
    return found
