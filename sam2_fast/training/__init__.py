"""Training: recipes, clips, a simulated annotator, the released losses, and the training loop.

The loop can be resumed with bitwise equal results.
"""

from sam2_fast.training.batches import Batch, Clip, collate
from sam2_fast.training.forward import simulate
from sam2_fast.training.losses import (
    Losses,
    LossWeights,
    MaskLosses,
    Step,
    clip_losses,
    iou_loss,
    mask_losses,
    require_finite,
    step_losses,
)
from sam2_fast.training.recipe import Recipe, Stage
from sam2_fast.training.simulation import (
    Annotator,
    Hands,
    Plan,
    correction,
    draw_plan,
    first_prompt,
)
from sam2_fast.training.sources import Source, Synthetic
from sam2_fast.training.trainer import Trainer

__all__ = [
    "Annotator",
    "Batch",
    "Clip",
    "Hands",
    "LossWeights",
    "Losses",
    "MaskLosses",
    "Plan",
    "Recipe",
    "Source",
    "Stage",
    "Step",
    "Synthetic",
    "Trainer",
    "clip_losses",
    "collate",
    "correction",
    "draw_plan",
    "first_prompt",
    "iou_loss",
    "mask_losses",
    "require_finite",
    "simulate",
    "step_losses",
]
