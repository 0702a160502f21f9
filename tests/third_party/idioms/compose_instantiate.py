"""Models are made by Hydra: composed, resolved, instantiated, and given the weights of a file."""

import sys

import torch
from common import CONFIG, SIZE, image_predictor, save, segment, track, video_predictor
from hydra import compose
from hydra.utils import instantiate
from omegaconf import OmegaConf

VIDEO = "++model._target_=sam2.sam2_video_predictor.SAM2VideoPredictor"
STABLE = "++model.sam_mask_decoder_extra_args.dynamic_multimask_via_stability=true"
BINARY = "++model.binarize_mask_from_pts_for_mem_enc=true"
POSTPROCESSING = STABLE, BINARY, "++model.fill_hole_area=8"


def build(*overrides):
    config = compose(config_name=CONFIG, overrides=[f"++model.image_size={SIZE}", *overrides])
    OmegaConf.resolve(config)
    model = instantiate(config.model, _recursive_=True)
    model.load_state_dict(torch.load(sys.argv[1], map_location="cpu", weights_only=True)["model"])
    return model.eval()


save(
    settings=OmegaConf.to_container(compose(config_name=CONFIG)),
    masks=segment(image_predictor(build())),
    plain=track(build(VIDEO, *POSTPROCESSING)),
    same=track(video_predictor()),
    changed=track(build(VIDEO, "model.multimask_output_in_sam=false")),
)
