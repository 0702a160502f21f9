"""Frames loaded by functions of the program: all of them, one by one, and image by image."""

from unittest import mock

import sam2.sam2_video_predictor as video
import torch
from common import save, track, video_predictor
from sam2.utils import misc

load, load_image = video.load_video_frames, misc._load_img_as_tensor


def darker(video_path, image_size, offload_video_to_cpu, **options):
    calls.append([image_size, sorted(options)])
    images, height, width = load(video_path, image_size, offload_video_to_cpu, **options)
    return [image - 0.5 for image in images], height, width


def mirrored(path, image_size):
    image, height, width = load_image(path, image_size)
    return image.flip(-1), height, width


calls, predictor = [], video_predictor()
plain = track(predictor)
with mock.patch("sam2.sam2_video_predictor.load_video_frames", darker):
    changed = track(predictor)
with mock.patch("sam2.utils.misc._load_img_as_tensor", mirrored):
    changed_image = track(predictor)
results = {"changed": changed, "changed_image": changed_image, "calls": calls}
save(plain=plain, same=track(predictor), **results, size=list(torch.stack([plain]).shape))
