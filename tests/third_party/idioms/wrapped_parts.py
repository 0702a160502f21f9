"""Parts wrapped: DataParallel, a module that has only forward, and an assigned forward."""

from common import image_predictor, save, segment, track, video_predictor
from torch import nn


class Wrapper(nn.Module):
    def __init__(self, wrapped, factor):
        super().__init__()
        self.wrapped, self.factor, self.calls = wrapped, factor, 0

    def forward(self, *args, **kwargs):
        self.calls += 1
        return self.wrapped(*args, **kwargs) * self.factor


predictor = video_predictor()
plain = track(predictor)
predictor.image_encoder = nn.DataParallel(predictor.image_encoder)
predictor.memory_attention = Wrapper(predictor.memory_attention, 1.0)
same, calls = track(predictor), predictor.memory_attention.calls
predictor.memory_attention.factor = 1.3
changed = track(predictor)
original = predictor.sam_mask_decoder.transformer.forward


def forward(image, position, tokens):
    queries, keys = original(image, position, tokens)
    return queries * 1.1, keys


predictor.sam_mask_decoder.transformer.forward = forward
images = segment(image_predictor(predictor))
save(
    plain=plain,
    same=same,
    calls=calls,
    changed=changed,
    changed_forward=track(predictor),
    images=images,
)
