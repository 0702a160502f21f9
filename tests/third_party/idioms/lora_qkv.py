"""Low-rank terms, added in place to the queries and values of every block of the image encoder."""

from common import image_model, image_predictor, save, segment
from torch import nn


class _LoRA_qkv(nn.Module):  # noqa: N801 - the name that such programs have
    def __init__(self, qkv, rank=4):
        super().__init__()
        self.qkv = qkv
        self.dim = qkv.out_features // 3
        for name in ("q", "v"):
            setattr(self, f"linear_a_{name}", nn.Linear(qkv.in_features, rank, bias=False))
            setattr(self, f"linear_b_{name}", nn.Linear(rank, self.dim, bias=False))

    def forward(self, x):
        qkv = self.qkv(x)
        qkv[..., : self.dim] += self.linear_b_q(self.linear_a_q(x))
        qkv[..., -self.dim :] += self.linear_b_v(self.linear_a_v(x))
        return qkv


predictor = image_predictor(image_model())
plain = segment(predictor)
for block in predictor.model.image_encoder.trunk.blocks:
    block.attn.qkv = _LoRA_qkv(block.attn.qkv)
save(plain=plain, changed=segment(predictor), names=list(predictor.model.state_dict()))
