"""An image predictor of the same model, used between the steps of tracking."""

import torch
from common import click, image_predictor, save, segment, track, video_predictor

predictor = video_predictor()
plain = track(predictor)
images = image_predictor(predictor)
masks, segments = [], []
for index, _, logits in predictor.propagate_in_video(click(predictor)):
    masks.append(logits.clone())
    segments.append(segment(images, index))
same = torch.cat(masks)
save(plain=plain, same=same, segments=segments)
