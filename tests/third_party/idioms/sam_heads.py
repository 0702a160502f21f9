"""A subclass that chooses between the three masks by score and motion, as tracking programs do."""

import torch
from common import save, track, video_predictor
from sam2.sam2_video_predictor import SAM2VideoPredictor


class MotionAware(SAM2VideoPredictor):
    def _forward_sam_heads(self, backbone_features, multimask_output=False, **arguments):
        outputs = super()._forward_sam_heads(
            backbone_features, multimask_output=multimask_output, **arguments
        )
        low_res, high_res, scores, _, _, pointer, presence = outputs
        if not multimask_output:
            return outputs
        masks = (high_res > 0).float()
        overlap = (masks * self.last).sum((-2, -1)) / masks.maximum(self.last).sum((-2, -1))
        best = (0.2 * scores - overlap).argmax(-1)
        self.choices.append((best.tolist(), scores.argmax(-1).tolist()))
        rows = torch.arange(len(best))
        low, high = low_res[rows, best].unsqueeze(1), high_res[rows, best].unsqueeze(1)
        self.last = (high > 0).float()
        return low_res, high_res, scores, low, high, pointer, presence


predictor = video_predictor()
plain = track(predictor)
predictor.__class__ = MotionAware
predictor.choices, predictor.last = [], torch.zeros(1, 1, 128, 128)
changed = track(predictor)
save(plain=plain, changed=changed, choices=predictor.choices)
