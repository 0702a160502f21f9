"""Subclasses with their own _encode_new_memory and forward_image."""

import torch
from common import save, track, video_predictor
from sam2.sam2_video_predictor import SAM2VideoPredictor


class LargerMemories(SAM2VideoPredictor):
    def _encode_new_memory(self, pred_masks_high_res, **arguments):
        self.calls.append(sorted(arguments))
        larger = torch.nn.functional.max_pool2d(pred_masks_high_res, 9, stride=1, padding=4)
        features, positions = super()._encode_new_memory(pred_masks_high_res=larger, **arguments)
        return features * 1.1, positions


class Blurred(SAM2VideoPredictor):
    def forward_image(self, img_batch):
        self.calls.append(tuple(img_batch.shape))
        blurred = torch.nn.functional.avg_pool2d(img_batch, 5, stride=1, padding=2)
        return super().forward_image(blurred)


predictor = video_predictor()
results = {"plain": track(predictor)}
for kind in (LargerMemories, Blurred):
    predictor.__class__, predictor.calls = kind, []
    results[f"changed {kind.__name__}"] = track(predictor)
    results[f"calls {kind.__name__}"] = predictor.calls
save(**results)
