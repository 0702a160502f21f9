"""The image encoder traced by torch.jit.trace, which then runs on another image."""

import io

import torch
from common import image_model, pixels, save
from torch import nn


class Outputs(nn.Module):
    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, image):
        outputs = self.encoder(image)
        return (*outputs["backbone_fpn"], *outputs["vision_pos_enc"], outputs["vision_features"])


with torch.no_grad():
    wrapper = Outputs(image_model().image_encoder)
    plain = wrapper(pixels(1))
    traced = torch.jit.trace(wrapper, pixels(0))
    buffer = io.BytesIO()
    torch.jit.save(traced, buffer)
    buffer.seek(0)
    save(plain=plain, same=traced(pixels(1)), same_loaded=torch.jit.load(buffer)(pixels(1)))
