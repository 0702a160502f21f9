"""Position encodings that were replaced or changed reach memory attention."""

import torch
from common import save, track, video_predictor


class Learned(torch.nn.Module):
    def __init__(self, channels, side):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        table = torch.randn(channels, side, side, generator=generator)
        self.table = torch.nn.Parameter(table)

    def forward(self, x):
        size = x.shape[-2:]
        table = torch.nn.functional.interpolate(self.table[None], size, mode="nearest")
        return table.expand(len(x), -1, -1, -1).detach()


predictor = video_predictor()
plain, results = track(predictor), {}
for name, part, channels in (
    ("features", predictor.image_encoder.neck, 256),
    ("memories", predictor.memory_encoder, 64),
):
    before, part.position_encoding = part.position_encoding, Learned(channels, 8)
    results[f"changed_{name}"] = track(predictor)
    part.position_encoding = before
neck = predictor.image_encoder.neck.position_encoding
neck.register_forward_hook(lambda module, inputs, output: output * 3)
save(plain=plain, **results, changed_by_a_hook=track(predictor))
