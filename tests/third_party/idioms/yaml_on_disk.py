"""An edited configuration: in a folder that is given to Hydra, and by its absolute path."""

import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from common import CONFIG, SIZE, save, track, video_predictor
from hydra import initialize_config_dir, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from sam2.build_sam import build_sam2, build_sam2_video_predictor

folder = tempfile.mkdtemp()
config = OmegaConf.load(str(files("sam2").joinpath(CONFIG)))
config.model.update(image_size=SIZE, max_obj_ptrs_in_encoder=2, sigmoid_scale_for_mem_enc=2.0)
config.model.memory_attention.layer.pos_enc_at_attn = True
text = f"# @package _global_\n{OmegaConf.to_yaml(config)}"
Path(folder, "sam2.1_hiera_t.yaml").write_text(text)
by_path = build_sam2_video_predictor(f"/{folder}/sam2.1_hiera_t.yaml", sys.argv[1], device="cpu")
plain = track(video_predictor())
GlobalHydra.instance().clear()
initialize_config_dir(config_dir=folder, version_base="1.2")
by_name = build_sam2_video_predictor("sam2.1_hiera_t", sys.argv[1], device="cpu")
model = build_sam2("sam2.1_hiera_t.yaml", device="cpu", hydra_overrides_extra=[])
assert model.image_size == SIZE and model.max_obj_ptrs_in_encoder == 2
GlobalHydra.instance().clear()
initialize_config_module("sam2", version_base="1.2")
again = video_predictor("++model.max_obj_ptrs_in_encoder=16")
results = {"changed_by_path": track(by_path), "changed_by_name": track(by_name)}
save(plain=plain, same=track(again), **results)
