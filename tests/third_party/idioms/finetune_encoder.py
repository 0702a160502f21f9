"""Fine-tunes the whole image model, gradients through the image encoder: set_image has none."""

import torch
from common import FEATURE_SIZES, LABEL, POINT, frame, image_model, image_predictor, save

predictor = image_predictor(image_model())
model = predictor.model.train()
before = {name: p.detach().clone() for name, p in model.named_parameters()}
optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
backbone = model.forward_image(predictor._transforms(frame(0))[None])
_, levels, _, _ = model._prepare_backbone_features(backbone)
levels[-1] = levels[-1] + model.no_mem_embed
maps = [x.permute(1, 2, 0).view(1, -1, *s) for x, s in zip(levels, FEATURE_SIZES, strict=True)]
points = torch.tensor(POINT, dtype=torch.float)[None], torch.tensor(LABEL)[None]
sparse, dense = model.sam_prompt_encoder(points=points, boxes=None, masks=None)
low_res_masks, scores, _, _ = model.sam_mask_decoder(
    image_embeddings=maps[-1],
    image_pe=model.sam_prompt_encoder.get_dense_pe(),
    sparse_prompt_embeddings=sparse,
    dense_prompt_embeddings=dense,
    multimask_output=True,
    repeat_image=False,
    high_res_features=maps[:-1],
)
(low_res_masks.sigmoid().mean() + scores.mean()).backward()
optimizer.step()
trained = {name: p for name, p in model.named_parameters() if p.grad is not None}
steps = {k: p.detach() - before[k] for k, p in trained.items() if "blocks.3" in k or "neck" in k}
save(norms={name: p.grad.norm() for name, p in trained.items()}, steps=steps)
