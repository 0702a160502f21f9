"""Functions that parts of the model call, replaced in their modules."""

from unittest import mock

import torch
from common import image_model, image_predictor, save, segment, track, video_predictor
from sam2.modeling import sam2_base
from sam2.modeling.backbones import hieradet
from sam2.modeling.sam import transformer


def doubled(x, pool, norm=None):
    return 2 * do_pool(x, pool, norm)


def reversed_windows(x, size):
    windows, padded = window_partition(x, size)
    return windows.flip(0), padded


def unrotated(xq, xk, freqs_cis, repeat_freqs_k=False):
    return apply_rotary_enc(xq, xk, torch.ones_like(freqs_cis), repeat_freqs_k)


do_pool, window_partition = hieradet.do_pool, hieradet.window_partition
apply_rotary_enc, sine = transformer.apply_rotary_enc, sam2_base.get_1d_sine_pe
image, video = image_predictor(image_model()), video_predictor()
results = {"plain": segment(image), "videos": [track(video)]}
for name, function in {"do_pool": doubled, "window_partition": reversed_windows}.items():
    with mock.patch.object(hieradet, name, function):
        results[f"changed_{name}"] = segment(image)
with mock.patch("sam2.modeling.sam.transformer.apply_rotary_enc", unrotated):
    results["videos"].append(track(video))
with mock.patch.object(sam2_base, "get_1d_sine_pe", lambda x, dim: sine(3 * x, dim)):
    results["videos"].append(track(video))
with mock.patch.object(sam2_base, "select_closest_cond_frames", lambda f, x, n: (dict(x), {})):
    results["videos"].append(track(video))
save(**results, same=segment(image))
