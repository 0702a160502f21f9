"""The mask decoder as exporters wrap it: prompts are embedded by the parts of the encoder."""

import torch
from common import image_model, image_predictor, save, segment

predictor = image_predictor(image_model())
segment(predictor)
encoder, decoder = predictor.model.sam_prompt_encoder, predictor.model.sam_mask_decoder
decoder.dynamic_multimask_via_stability = False
predictor.model.requires_grad_(False)


def decode(features, low, high, points, labels, mask, has_mask):
    embedding = encoder.pe_layer._pe_encoding((points + 0.5) / predictor.model.image_size)
    labels = labels.unsqueeze(-1).expand_as(embedding)
    sparse = embedding * (labels != -1) + encoder.not_a_point_embed.weight * (labels == -1)
    for i in range(encoder.num_point_embeddings):
        sparse = sparse + encoder.point_embeddings[i].weight * (labels == i)
    dense = has_mask * encoder.mask_downscaling(mask)
    dense = dense + (1 - has_mask) * encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
    position = encoder.get_dense_pe()
    masks, scores, _, _ = decoder.predict_masks(
        features, position, sparse, dense, repeat_image=False, high_res_features=[low, high]
    )
    return masks[:, : decoder.num_mask_tokens], scores


points, labels = torch.tensor([[[50.0, 53.0], [20, 99], [0, 0]]]), torch.tensor([[1, 0, -1]])
mask = torch.randn(1, 1, *encoder.mask_input_size, generator=torch.Generator().manual_seed(0))
inputs = (predictor._features["image_embed"], *predictor._features["high_res_feats"], points)
with torch.no_grad():
    plain = decode(*inputs, labels, mask, torch.tensor([0.0]))
    changed = decode(*inputs, labels, mask, torch.tensor([1.0]))
    traced = torch.jit.trace(decode, (*inputs, labels, mask, torch.tensor([1.0])))
    save(plain=plain, changed=changed, same=traced(*inputs, labels, mask, torch.tensor([0.0])))
