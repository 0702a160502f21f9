"""All linear layers quantised dynamically to int8."""

import torch
from common import image_model, image_predictor, save, segment
from torch import nn

predictor = image_predictor(image_model())
plain = segment(predictor)
torch.backends.quantized.engine = "fbgemm"
predictor.model = torch.ao.quantization.quantize_dynamic(
    predictor.model, {nn.Linear}, dtype=torch.qint8
)
kinds = {name: type(part).__name__ for name, part in predictor.model.named_modules()}
quantised = [name for name, kind in kinds.items() if kind == "Linear" and "layers" in name]
save(plain=plain, changed=segment(predictor), quantised=quantised)
