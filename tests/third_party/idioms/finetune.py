"""Fine-tunes the mask decoder and the prompt encoder on one image by the internals of set_image."""

import torch
from common import LABEL, POINT, frame, image_model, image_predictor, save

predictor = image_predictor(image_model())
model = predictor.model
model.sam_mask_decoder.train(True)
model.sam_prompt_encoder.train(True)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=4e-5)
target = torch.zeros(1, 120, 160)
target[:, 30:70, 40:90] = 1
predictor.set_image(frame(0))
features = predictor._features
points = predictor._prep_prompts(POINT, LABEL, box=None, mask_logits=None, normalize_coords=True)
sparse, dense = model.sam_prompt_encoder(points=points[1:3], boxes=None, masks=None)
low_res_masks, scores, _, _ = model.sam_mask_decoder(
    image_embeddings=features["image_embed"][-1].unsqueeze(0),
    image_pe=model.sam_prompt_encoder.get_dense_pe(),
    sparse_prompt_embeddings=sparse,
    dense_prompt_embeddings=dense,
    multimask_output=True,
    repeat_image=points[1].shape[0] > 1,
    high_res_features=[level[-1].unsqueeze(0) for level in features["high_res_feats"]],
)
masks = predictor._transforms.postprocess_masks(low_res_masks, predictor._orig_hw[-1])[:, 0]
iou = (target * (masks > 0)).sum() / target.maximum((masks > 0).float()).sum()
loss = torch.nn.functional.binary_cross_entropy_with_logits(masks, target)
(loss + 0.05 * (scores[:, 0] - iou).abs().mean()).backward()
optimizer.step()
trained = {name: p for name, p in model.named_parameters() if p.grad is not None}
gradients = {name: p.grad for name, p in trained.items()}
save(loss=loss.item(), weights={k: p.detach() for k, p in trained.items()}, gradients=gradients)
