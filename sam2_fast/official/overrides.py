"""Whether a model overrides steps of the official `SAM2Base`, so that they must be called."""

from __future__ import annotations

from sam2_fast.model import Sam2
from sam2_fast.official.steps import OfficialSteps

_STEPS = {name: step for name, step in vars(OfficialSteps).items() if callable(step)}


def needs_official_steps(model: Sam2) -> bool:
    """Whether a model overrides official steps, or has a setting that only these support.

    A subclass, an attribute of the model, or an assignment to the class can override a step.
    """
    if not isinstance(model, OfficialSteps):
        return False
    kind, own = type(model), vars(model)
    for name, step in _STEPS.items():
        if getattr(kind, name) is not step or name in own:
            return True
    return model.num_maskmem == 0
