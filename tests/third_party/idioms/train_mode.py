"""Dropout and stochastic depth at inference: parts in training mode, with seeds."""

import torch
from common import image_predictor, save, segment, track, video_predictor

predictor = video_predictor("++model.image_encoder.trunk.drop_path_rate=0.2")
plain, image = track(predictor), segment(image_predictor(predictor))


def sample(seed, *parts):
    for part in parts:
        part.train()
    torch.manual_seed(seed)
    masks = track(predictor)
    predictor.eval()
    return masks


results = {
    "same": sample(0),
    "changed_memory": sample(0, predictor.memory_attention),
    "changed_memory_again": sample(1, predictor.memory_attention),
    "changed_trunk": sample(0, predictor.image_encoder),
    "changed_both": sample(2, predictor.image_encoder, predictor.memory_attention),
}
predictor.train()
torch.manual_seed(3)
images = segment(image_predictor(predictor))
save(plain=plain, **results, images=[image, images])
