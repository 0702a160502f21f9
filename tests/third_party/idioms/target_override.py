"""Subclasses of predictors and parts by `_target_`, with arguments of their own."""

from common import image_model, save, track, video_predictor
from sam2.modeling.memory_encoder import MemoryEncoder
from sam2.modeling.sam2_base import SAM2Base
from sam2.sam2_video_predictor import SAM2VideoPredictor


class Fading(SAM2VideoPredictor):
    def __init__(self, factor=1.0, **arguments):
        super().__init__(**arguments)
        self.factor = factor

    def _encode_new_memory(self, **arguments):
        memory, position = super()._encode_new_memory(**arguments)
        return self.factor * memory, position


class Scaled(MemoryEncoder):
    def forward(self, pix_feat, masks, skip_mask_sigmoid=False):
        return super().forward(pix_feat, 0.2 * masks, skip_mask_sigmoid)


fading = "++model._target_=__main__.Fading"
scaled = video_predictor("++model.memory_encoder._target_=__main__.Scaled")
model = image_model(fading, "++model.factor=0.5")
assert isinstance(model, SAM2Base) and model.factor == 0.5
tracks = [track(video_predictor(fading, f"++model.factor={factor}")) for factor in (1.0, 0.1)]
save(plain=track(video_predictor()), same=tracks[0], changed=tracks[1], changed_part=track(scaled))
