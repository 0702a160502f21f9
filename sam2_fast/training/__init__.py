"""Training: so far the losses of the released recipe, its simulated annotator, and a clip's way through the model."""

from sam2_fast.training.forward import simulate
from sam2_fast.training.losses import Losses, LossWeights, Step, clip_losses, dice_loss, focal_loss, iou_loss, require_finite, step_losses
from sam2_fast.training.simulation import Annotator, Plan, correction, draw_plan, first_prompt

__all__ = [
    "Annotator",
    "LossWeights",
    "Losses",
    "Plan",
    "Step",
    "clip_losses",
    "correction",
    "dice_loss",
    "draw_plan",
    "first_prompt",
    "focal_loss",
    "iou_loss",
    "require_finite",
    "simulate",
    "step_losses",
]
