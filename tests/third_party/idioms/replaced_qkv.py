"""Three linear layers instead of one for queries, keys and values; the module has only forward."""

import torch
from common import image_model, image_predictor, save, segment
from torch import nn


class SeparateQKV(nn.Module):
    def __init__(self, qkv):
        super().__init__()
        dim = qkv.out_features // 3
        self.parts = nn.ModuleList(nn.Linear(qkv.in_features, dim) for _ in range(3))
        with torch.no_grad():
            for i, part in enumerate(self.parts):
                part.weight.copy_(qkv.weight[i * dim : (i + 1) * dim])
                part.bias.copy_(qkv.bias[i * dim : (i + 1) * dim])

    def forward(self, x):
        return torch.cat([part(x) for part in self.parts], dim=-1)


predictor = image_predictor(image_model())
blocks = predictor.model.image_encoder.trunk.blocks
plain = segment(predictor)
for block in blocks:
    block.attn.qkv = SeparateQKV(block.attn.qkv)
same = segment(predictor)
for block in blocks:
    block.attn.qkv.parts[2].weight.data.mul_(1.2)
save(plain=plain, same=same, changed=segment(predictor))
