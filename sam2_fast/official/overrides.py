"""Whether a model overrides steps of the official `SAM2Base`, so that they must be called."""

from __future__ import annotations

from torch import nn

from sam2_fast.model import Sam2, sam2
from sam2_fast.model.image_encoder import FpnNeck, ImageEncoder
from sam2_fast.model.memory_encoder import MemoryEncoder
from sam2_fast.model.position import PositionEmbeddingSine
from sam2_fast.official import closest_frames, steps
from sam2_fast.official.predictor_steps import PredictorSteps
from sam2_fast.official.steps import OfficialSteps
from sam2_fast.ops.core.lookups import LookedUp

_LOOKED_UP = (
    LookedUp(vars(steps), "NO_OBJ_SCORE"),
    LookedUp(vars(closest_frames), "select_closest_cond_frames"),
    LookedUp(vars(sam2), "get_1d_sine_pe"),
)
_STEPS = {name: step for name, step in vars(OfficialSteps).items() if callable(step)}
_PREDICTOR_STEPS = _STEPS | {
    name: step for name, step in vars(PredictorSteps).items() if callable(step)
}


def needs_official_steps(model: Sam2) -> bool:
    """Whether a model overrides official steps, or only these support how it was changed.

    A subclass, an attribute of the model, or an assignment to the class can override a step; and a
    program can replace a function that the steps call.
    """
    if not isinstance(model, OfficialSteps):
        return False
    kind, own = type(model), vars(model)
    expected = _PREDICTOR_STEPS if isinstance(model, PredictorSteps) else _STEPS
    for name, step in expected.items():
        if getattr(kind, name) is not step or name in own:
            return True
    if any(lookup.replaced() for lookup in _LOOKED_UP):
        return True
    return model.num_maskmem == 0 or not _has_own_positions(model)


def _has_own_positions(model: Sam2) -> bool:
    """Whether positions of features and memories are certainly those of the released models."""
    # Members are read from dictionaries, because this runs for every frame.
    encoder, memory_encoder = model._modules["image_encoder"], model._modules["memory_encoder"]
    if type(encoder) is not ImageEncoder or type(memory_encoder) is not MemoryEncoder:
        return False  # the outputs of another encoder contain its positions
    neck = encoder._modules["neck"]
    if type(neck) is not FpnNeck:
        return False
    return _is_own(neck._modules["position_encoding"]) and _is_own(
        memory_encoder._modules["position_encoding"]
    )


def _is_own(encoding: nn.Module | None) -> bool:
    if type(encoding) is not PositionEmbeddingSine or not encoding.is_that_of_released_models():
        return False
    return not encoding._forward_hooks and not encoding._forward_pre_hooks
