"""A subclass of the image predictor with its own _prep_prompts and _predict."""

import numpy as np
import torch
from common import LABEL, POINT, frame, image_model, image_predictor, save, segment
from sam2.sam2_image_predictor import SAM2ImagePredictor


class Shifted(SAM2ImagePredictor):
    def _prep_prompts(self, point_coords, *args, **kwargs):
        prompts = super()._prep_prompts(point_coords + np.array([30, -12]), *args, **kwargs)
        self.prompts = [str(prompt) for prompt in prompts]
        return prompts


class Sharpened(SAM2ImagePredictor):
    def _predict(self, *args, **kwargs):
        masks, scores, low_res_masks = super()._predict(*args, **kwargs)
        return masks * 2, scores, low_res_masks


model = image_model()
predictor = image_predictor(model, Shifted)
plain, changed = segment(image_predictor(model)), segment(predictor)
predictor.set_image_batch([frame(0), frame(2)[:100]])
batch = predictor.predict_batch([POINT] * 2, [LABEL] * 2, return_logits=True)
batch = [torch.from_numpy(output) for outputs in batch for output in outputs]
sharpened = segment(image_predictor(model, Sharpened))
save(plain=plain, changed=changed, changed_more=sharpened, batch=batch, prompts=predictor.prompts)
