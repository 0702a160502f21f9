"""Adapters behind blocks of the image encoder, which are replaced by sequences."""

from common import image_model, image_predictor, save, segment
from torch import nn


class Adapter(nn.Module):
    def __init__(self, dim, ratio=0.25):
        super().__init__()
        self.down = nn.Linear(dim, int(dim * ratio))
        self.up = nn.Linear(int(dim * ratio), dim)

    def forward(self, x):
        return x + self.up(nn.functional.gelu(self.down(x)))


predictor = image_predictor(image_model())
plain = segment(predictor)
blocks = predictor.model.image_encoder.trunk.blocks
for i, block in enumerate(blocks):
    blocks[i] = nn.Sequential(block, Adapter(block.dim_out))
changed = segment(predictor)
kinds = [type(block).__name__ for block in blocks]
save(plain=plain, changed=changed, kinds=kinds, names=list(blocks.state_dict()))
