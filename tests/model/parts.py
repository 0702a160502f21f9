"""The parts of a small model, a layer in each, and the results of all steps of the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sam2_fast.model.fusion import OpModule
from sam2_fast.types import NoPoints, Points
from sam2_fast.video.predictor import SAM2VideoPredictor

PARTS: dict[str, Callable[[Any], OpModule[Any]]] = {
    "block": lambda m: m.image_encoder.trunk.blocks[1],
    "memory attention": lambda m: m.memory_attention,
    "memory encoder": lambda m: m.memory_encoder,
    "mask decoder": lambda m: m.sam_mask_decoder,
}
LAYERS: dict[str, Callable[[Any], nn.Linear]] = {
    "block": lambda m: m.image_encoder.trunk.blocks[1].attn.qkv,
    "memory attention": lambda m: m.memory_attention.layers[1].cross_attn_image.v_proj,
    "memory encoder": lambda m: m.memory_encoder.fuser.layers[0].pwconv1,
    "mask decoder": lambda m: m.sam_mask_decoder.transformer.layers[1].mlp.layers[0],
}


@torch.inference_mode()
def run(model: SAM2VideoPredictor) -> list[Tensor]:
    """The results of all steps of the model on one image, one click and one memory."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    features = model.encode_image(random(1, 3, 64, 64))
    points = Points(torch.tensor([[[30.0, 20.0]]]), torch.ones(1, 1, dtype=torch.int32))
    fused = model.attend(features.low, [[random(16, 64)]], [[1]], [random(2, 256)], [[1.0, 2.0]], 3)
    prediction = model.decode(fused, features, points, None, multimask=True)
    tracked = model.track(fused, features, NoPoints(1), None, multimask=True)
    memory = model.encode_memory(features.low, *tracked[::2], binarize=False)
    return [*features, fused, *prediction, *tracked, memory]


def assert_close(outputs: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(outputs, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def all_called(model: SAM2VideoPredictor) -> list[Tensor]:
    """The results of calls of all modules."""
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert set(model.unfused_parts().values()) == {"hooks are registered for all modules"}
        return run(model)
    finally:
        handle.remove()


class Lora(nn.Module):
    """A linear layer with an addition of low rank."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        self.down = nn.Linear(layer.in_features, 2)
        self.up = nn.Linear(2, layer.out_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.up(self.down(x))


def replace(model: Any, name: str, make: Callable[[nn.Linear], nn.Module]) -> None:
    """Replace the layer of a part by `make(layer)`."""
    old = LAYERS[name](model)
    for parent in list(model.modules()):
        for child, module in list(parent.named_children()):
            if module is old:
                setattr(parent, child, make(old))
