"""Transforms of an image predictor replaced: a subclass, and an object of another class."""

import torch
from common import SIZE, image_model, image_predictor, pixels, save, segment
from sam2.utils.transforms import SAM2Transforms


class Contrast(SAM2Transforms):
    def __call__(self, x):
        return super().__call__(x) * 0.5

    def postprocess_masks(self, masks, orig_hw):
        return super().postprocess_masks(masks, orig_hw) - 0.1


class Own:
    def __call__(self, image):
        return pixels(0)[0] + image.mean() / 255

    def transform_coords(self, coords, normalize=False, orig_hw=None):
        return coords * SIZE / torch.tensor(orig_hw[::-1])

    def postprocess_masks(self, masks, orig_hw):
        return torch.nn.functional.interpolate(masks, orig_hw, mode="nearest")


predictor = image_predictor(image_model())
plain = segment(predictor)
predictor._transforms = Contrast(resolution=SIZE, mask_threshold=0.0)
changed = segment(predictor)
predictor._transforms = Own()
save(plain=plain, changed=changed, changed_own=segment(predictor))
