"""What the scripts of this folder share: `python SCRIPT CHECKPOINT FRAMES OUTPUT` runs one of them.

The scripts are written for the official package: they import `sam2` only. Every random number is
seeded. `save` stores tensors, numbers, strings, lists and dictionaries; tests/compat/test_idioms.py
compares them between two packages, and requires that `changed...` is not `plain`, but `same...` is.
"""

import sys

import numpy as np
import torch
from PIL import Image
from sam2.build_sam import build_sam2, build_sam2_video_predictor
from sam2.sam2_image_predictor import SAM2ImagePredictor

CONFIG = "configs/sam2.1/sam2.1_hiera_t.yaml"
SIZE = 128
# Official image predictors have the sizes of feature maps of 1024-pixel models.
FEATURE_SIZES = [(SIZE // stride, SIZE // stride) for stride in (4, 8, 16)]
POINT, LABEL = np.array([[65.0, 50.0]]), np.array([1])


def image_model(*overrides):
    """The model of an image predictor, with overrides of Hydra; it seeds what is drawn later."""
    extra = [f"++model.image_size={SIZE}", *overrides]
    model = build_sam2(CONFIG, sys.argv[1], device="cpu", hydra_overrides_extra=extra)
    torch.manual_seed(0)  # the two packages draw different numbers of random weights
    return model


def image_predictor(model, kind=SAM2ImagePredictor):
    """An image predictor of a model of 128 pixels."""
    predictor = kind(model)
    predictor._bb_feat_sizes = FEATURE_SIZES
    return predictor


def video_predictor(*overrides):
    """A video predictor, with overrides of Hydra."""
    extra = [f"++model.image_size={SIZE}", *overrides]
    return build_sam2_video_predictor(
        CONFIG, sys.argv[1], device="cpu", hydra_overrides_extra=extra
    )


def frame(index):
    """A frame of the video: [H, W, 3] uint8."""
    return np.array(Image.open(f"{sys.argv[2]}/{index:05d}.jpg"))


def pixels(index):
    """A normalised image of 128 x 128 pixels: [1, 3, H, W] float32."""
    image = torch.from_numpy(frame(index)).permute(2, 0, 1)[None] / 127.5 - 1
    return torch.nn.functional.interpolate(image, (SIZE, SIZE), mode="bilinear")


def segment(predictor, index=0):
    """Logits of three masks for one click, and their scores: a list of two tensors."""
    predictor.set_image(frame(index))
    outputs = predictor.predict(POINT, LABEL, multimask_output=True, return_logits=True)
    return [torch.from_numpy(output) for output in outputs[:2]]


def click(predictor):
    """The state of a video with a click on its first frame."""
    state = predictor.init_state(sys.argv[2])
    predictor.add_new_points_or_box(state, 0, 1, points=POINT, labels=LABEL)
    return state


def track(predictor):
    """Logits of the masks of all frames, for one click on the first: [T, 1, H, W]."""
    frames = predictor.propagate_in_video(click(predictor))
    return torch.cat([logits for _, _, logits in frames]).clone()


def save(**results):
    """Store the results of a script."""
    torch.save(results, sys.argv[3])
