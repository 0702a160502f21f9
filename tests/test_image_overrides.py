"""Methods and transforms of an image predictor that have been replaced are called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from sam2_fast.image.automatic import SAM2AutomaticMaskGenerator
from sam2_fast.image.predictor import SAM2ImagePredictor
from sam2_fast.image.transforms import SAM2Transforms
from tests.test_image_predictor import picture, small_model


class Halved(SAM2Transforms):
    """Transforms with less contrast, and lower masks."""

    def __call__(self, x: Any) -> torch.Tensor:
        return super().__call__(x) * 0.5

    def postprocess_masks(self, masks: torch.Tensor, orig_hw: tuple[int, int]) -> torch.Tensor:
        return super().postprocess_masks(masks, orig_hw) - 3.0


def halve_the_input(predictor: Any) -> None:
    resize = predictor._transforms.transforms
    resize.register_forward_hook(lambda _, __, output: output * 0.5)


def own_tensors(predictor: Any) -> None:
    original = predictor._transforms.to_tensor
    predictor._transforms.to_tensor = lambda image: original(255 - image)


TRANSFORMS: dict[str, Callable[[Any], None]] = {
    "a subclass": lambda p: setattr(p, "_transforms", Halved(64, 0.0)),
    "a changed class": lambda p: setattr(p._transforms, "__class__", Halved),
    "an assigned function": own_tensors,
    "a hook": halve_the_input,
    "another resolution": lambda p: setattr(p, "_transforms", SAM2Transforms(64, 1.5)),
}


@pytest.mark.parametrize("change", TRANSFORMS)
def test_replaced_transforms_are_called(change: str) -> None:
    predictor = SAM2ImagePredictor(small_model(torch.float32))
    image = picture(0, 30, 50)
    predictor.set_image(image)
    expected = predictor.predict([[20, 20]], [1], return_logits=True)
    assert predictor._transforms.is_standard() and not predictor.is_overridden()
    TRANSFORMS[change](predictor)
    standard = change == "another resolution"
    assert predictor.is_overridden() is not standard
    for encode in (predictor.set_image, lambda image: predictor.set_image_batch([image])):
        encode(image)
        outputs = predictor.predict([[20, 20]], [1], return_logits=True)
        assert (np.abs(outputs[0] - expected[0]).max() > 1e-3) is not standard


def test_automatic_masks_come_from_an_overridden_predictor() -> None:
    class Inverted(SAM2ImagePredictor):
        def _predict(self, *arguments: Any, **keywords: Any) -> Any:
            masks, iou, low = super()._predict(*arguments, **keywords)
            return -masks, iou, low

    model = small_model(torch.float32)
    for refine in (False, True):
        options = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 1.0}
        generator = SAM2AutomaticMaskGenerator(model, points_per_side=2, use_m2m=refine, **options)
        expected = generator.generate(picture(0, 32, 48))
        predictor = SAM2ImagePredictor(model)
        predictor.__class__ = Inverted
        generator.predictor = predictor
        inverted = generator.generate(picture(0, 32, 48))
        areas = sorted(mask["area"] for mask in expected)
        assert sorted(32 * 48 - mask["area"] for mask in inverted) == pytest.approx(areas, abs=2)


def test_models_in_wrappers_are_used_themselves() -> None:
    model = small_model(torch.float32)
    predictor = SAM2ImagePredictor(torch.compile(model, backend="eager"))
    assert predictor.model is model

    class PeftModel(torch.nn.Module):
        """As in peft: the base model has the adapters."""

        def get_base_model(self) -> Any:
            return model

    assert SAM2ImagePredictor(PeftModel()).model is model
    with pytest.raises(TypeError, match="sam_model: expected a model from build_sam2, got Linear"):
        SAM2ImagePredictor(torch.nn.Linear(1, 1))
