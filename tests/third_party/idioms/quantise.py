"""All linear layers quantised dynamically to int8."""

from collections import Counter

import torch
from common import image_model, image_predictor, save, segment
from torch import nn

torch.backends.quantized.engine = "fbgemm"
predictor = image_predictor(image_model())
masks, scores = segment(predictor)
predictor.model = torch.ao.quantization.quantize_dynamic(
    predictor.model, {nn.Linear}, dtype=torch.qint8
)
calls, outputs = Counter(), []
for name, part in predictor.model.named_modules():
    if isinstance(part, torch.ao.nn.quantized.dynamic.Linear):
        part.register_forward_hook(lambda m, args, y, name=name: calls.update([name]))
first = predictor.model.image_encoder.trunk.blocks[0].attn.qkv
first.register_forward_hook(lambda m, args, y: outputs.append(y))
logits = segment(predictor)[0]
error = (logits - masks).abs().mean().item()
save(calls=dict(calls), masks=logits, is_changed=error > 1e-3, first=outputs[0])
