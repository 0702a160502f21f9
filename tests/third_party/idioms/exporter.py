"""The image encoder as exporters wrap it: three feature maps, once eager and once traced."""

import torch
from common import FEATURE_SIZES, image_model, pixels, save
from torch import nn


class ImageEncoder(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model
        self.image_encoder = model.image_encoder
        self.no_mem_embed = model.no_mem_embed

    def forward(self, image):
        backbone = self.model.forward_image(image)
        _, features, _, _ = self.model._prepare_backbone_features(backbone)
        features[-1] = features[-1] + self.no_mem_embed
        pairs = zip(features, FEATURE_SIZES, strict=True)
        low, middle, high = [x.permute(1, 2, 0).view(1, -1, *size) for x, size in pairs]
        return high, low, middle


with torch.no_grad():
    encoder = ImageEncoder(image_model()).eval()
    eager = encoder(pixels(1))
    traced = torch.jit.trace(encoder, pixels(0), check_trace=False)
    save(plain=list(eager), same=list(traced(pixels(1))), changed=list(traced(pixels(2))))
