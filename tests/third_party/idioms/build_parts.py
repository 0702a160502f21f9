"""Parts are built by hand with other settings than those of the released models."""

import torch
from common import pixels, save
from sam2.modeling.memory_attention import MemoryAttention, MemoryAttentionLayer
from sam2.modeling.memory_encoder import CXBlock, Fuser, MaskDownSampler, MemoryEncoder
from sam2.modeling.position_encoding import PositionEmbeddingSine
from sam2.modeling.sam.mask_decoder import MaskDecoder
from sam2.modeling.sam.prompt_encoder import PromptEncoder
from sam2.modeling.sam.transformer import RoPEAttention, TwoWayTransformer


def run(part, *inputs):
    torch.manual_seed(0)
    state = {name: 0.1 * torch.randn(x.shape) for name, x in sorted(part.state_dict().items())}
    part.load_state_dict(state)
    with torch.no_grad():
        return [list(state), part.eval()(*inputs)]


mask = pixels(0)[:, :1]
x, many = mask.reshape(1, 256, 8, 8)[:, :64], mask.reshape(256, 1, 64)[:64]
rope = RoPEAttention(64, num_heads=2), RoPEAttention(64, 2, rope_theta=99.0, rope_k_repeat=True)
layer = MemoryAttentionLayer("gelu", rope[1], 64, 96, 0.0, True, True, True, rope[0])
fuser = Fuser(CXBlock(64, 3, 1, layer_scale_init_value=0.0, use_dwconv=False), 1, 64, True)
encoder = MemoryEncoder(64, MaskDownSampler(64), fuser, PositionEmbeddingSine(64), in_dim=64)
decoder = MaskDecoder(transformer=TwoWayTransformer(3, 64, 4, 96), transformer_dim=64)
prompts = PromptEncoder(64, (8, 8), (128, 128), 8, torch.nn.ReLU)
outputs = {
    "attention": run(MemoryAttention(64, False, layer, 2), many, many, many, many),
    "masks": run(decoder, x, x, many[:5].transpose(0, 1), x, True, False),
    "prompts": run(prompts, None, None, mask[..., :32, :32]),
}
save(encoder=run(encoder, x, mask), **outputs)
