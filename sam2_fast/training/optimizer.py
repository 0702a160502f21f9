"""AdamW with the settings of the released recipe: learning rates and weight decay per parameter."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import nn

from sam2_fast.model import Sam2
from sam2_fast.training.recipe import Recipe, Stage

_TRUNK = "image_encoder.trunk."
_BLOCK = re.compile(r"^image_encoder\.trunk\.blocks\.(\d+)\.")


def parameter_groups(model: Sam2, recipe: Recipe) -> list[dict[str, Any]]:
    """Parameters in groups of equal learning rate and weight decay.

    "scale": factor of the learning rate. "encoder": whether the image encoder's learning rate
    applies.
    Biases and the weights of `nn.LayerNorm` do not decay. In the trunk, block i of n is scaled by
    layer_decay ** (n - i), and parameters before the blocks by layer_decay ** (n + 1), except the
    position table. Source: official `optimizer.py` with the released configuration.
    """
    norms = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.LayerNorm)
    }
    blocks = sum(model.config.stages)
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        scale = 1.0
        if name.startswith(_TRUNK) and "pos_embed" not in name:
            block = _BLOCK.match(name)
            scale = recipe.layer_decay ** (blocks - int(block[1]) if block else blocks + 1)
        decay = 0.0 if "bias" in name or name in norms else recipe.weight_decay
        groups.setdefault((scale, decay, name.startswith("image_encoder.")), []).append(parameter)
    return [
        {"params": parameters, "scale": scale, "weight_decay": decay, "encoder": encoder}
        for (scale, decay, encoder), parameters in groups.items()
    ]


def adamw(model: Sam2, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW with these groups; call `set_learning_rate` before each step."""
    return torch.optim.AdamW(parameter_groups(model, recipe), lr=0.0, betas=(0.9, 0.999))


def schedule(stage: Stage, step: int) -> float:
    """The fraction of the stage's learning rate at step `step` of the stage."""
    if step < stage.warmup:
        return (step + 1) / stage.warmup
    progress = (step - stage.warmup) / max((stage.cosine or stage.steps) - stage.warmup, 1)
    return stage.final_lr + (1 - stage.final_lr) * 0.5 * (
        1 + math.cos(math.pi * min(progress, 1.0))
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, stage: Stage, step: int) -> None:
    """Set the learning rate of every group for step `step` of `stage`."""
    encoder = stage.lr if stage.encoder_lr is None else stage.encoder_lr
    for group in optimizer.param_groups:
        group["lr"] = (
            schedule(stage, step) * group["scale"] * (encoder if group["encoder"] else stage.lr)
        )
