"""Image encoders are built by hand with other settings than those of the released models."""

import torch
from common import pixels, save
from sam2.modeling.backbones.hieradet import Hiera, MultiScaleBlock
from sam2.modeling.backbones.image_encoder import FpnNeck, ImageEncoder
from sam2.modeling.backbones.utils import PatchEmbed
from sam2.modeling.position_encoding import PositionEmbeddingSine


def run(part, *inputs):
    torch.manual_seed(0)
    state = {name: 0.1 * torch.randn(x.shape) for name, x in sorted(part.state_dict().items())}
    part.load_state_dict(state)
    with torch.no_grad():
        return [list(state), part.eval()(*inputs)]


trunk = Hiera(16, 2, 0.1, 2, stages=(1, 1, 2), head_mul=1.0, window_spec=(8, 4, 4))
neck = FpnNeck(PositionEmbeddingSine(32, normalize=False), 32, [64, 32, 16], fuse_type="avg")
block = MultiScaleBlock(16, 32, 2, 2.0, q_stride=(2, 2), act_layer=torch.nn.ReLU, window_size=4)
normed = MultiScaleBlock(16, 16, 4, norm_layer=lambda dim: torch.nn.LayerNorm(dim, eps=1e-2))
x = pixels(0)[:, :1].reshape(1, 32, 32, 16)
tokens = {"relu": run(block, x), "norm": run(normed, x)}
patches = run(PatchEmbed((3, 3), (2, 2), (1, 1), 3, 8), pixels(0))
save(images=run(ImageEncoder(trunk, neck), pixels(0)), patches=patches, **tokens)
