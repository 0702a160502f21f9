"""Models copied, stored and loaded as a whole, with a hook and a replaced layer in them."""

import copy
import io

import torch
from common import image_model, image_predictor, save, segment
from torch import nn


class Scaled(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer, self.scale = layer, nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        return self.layer(x) * self.scale


model = image_model()
plain = segment(image_predictor(model))
model.image_encoder.trunk.blocks[2].attn.qkv = Scaled(model.image_encoder.trunk.blocks[2].attn.qkv)
calls = []
model.image_encoder.trunk.blocks[2].mlp.register_forward_hook(lambda m, args, y: calls.append(1))
predictor = image_predictor(copy.deepcopy(model))
changed = segment(predictor)
model.image_encoder.trunk.blocks[2].mlp._forward_hooks.clear()
torch.save(model, buffer := io.BytesIO())
buffer.seek(0)
loaded = image_predictor(torch.load(buffer, weights_only=False))
predictor.model.load_state_dict(loaded.model.state_dict())
results = {
    "changed_loaded": segment(loaded),
    "changed_predictor": segment(copy.deepcopy(predictor)),
}
save(plain=plain, changed=changed, calls=len(calls), **results)
