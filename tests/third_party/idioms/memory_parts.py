"""Parts of the model called directly, with the names of their arguments."""

import torch
from common import pixels, save, video_predictor

model = video_predictor()
torch.manual_seed(0)
with torch.no_grad():
    levels = model.image_encoder.trunk(pixels(0))
    outputs = {"neck": model.image_encoder.neck(levels)}
    backbone = model.forward_image(pixels(0))
    _, features, positions, _ = model._prepare_backbone_features(backbone)
    masks = torch.rand(1, 1, 128, 128) * 20 - 10
    memory = model.memory_encoder(backbone["vision_features"], masks, skip_mask_sigmoid=True)
    tokens = memory["vision_features"].flatten(2).permute(2, 0, 1)
    tokens = torch.cat([tokens, tokens, torch.randn(8, 1, 64)])
    outputs["memory attention"] = model.memory_attention(
        curr=features[-1:],
        curr_pos=positions[-1:],
        memory=tokens,
        memory_pos=torch.randn(tokens.shape),
        num_obj_ptr_tokens=8,
    )
    layer = model.memory_attention.layers[0]
    x = features[-1].transpose(0, 1)
    outputs["self attention"] = layer.self_attn(x, x, v=x)
    outputs["layer"] = layer(x, tokens.transpose(0, 1), tokens.transpose(0, 1), x, 8)
    embedding, decoder = torch.randn(1, 256, 8, 8), model.sam_mask_decoder
    outputs["transformer"] = decoder.transformer(embedding, embedding * 0.5, torch.randn(1, 7, 256))
    blocks, image = model.image_encoder.trunk.blocks, levels[0].permute(0, 2, 3, 1)
    save(block=blocks[1](image), attention=blocks[0].attn(image), **outputs, **memory)
