"""drive_training.py REPOSITORY CHECKPOINT OUTPUT: steps of the official training model.

The class `training.model.sam2.SAM2Train` of the official repository is instantiated from the
official training configuration by the package that is installed as `sam2`. Stores losses, masks and
gradients. Nothing is random: dropout is off, and clicks are the centres of errors.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from dataclasses import dataclass
from typing import Any

import torch

REPOSITORY, CHECKPOINT, OUTPUT = sys.argv[1:4]
SIZE, FRAMES = 128, 3
CONFIG = "configs/sam2.1_training/sam2.1_hiera_b+_MOSE_finetune.yaml"
MODEL = "trainer.model"
TRUNK = f"{MODEL}.image_encoder.trunk"
LAYER = f"{MODEL}.memory_attention.layer"
OVERRIDES = [
    f"scratch.resolution={SIZE}",
    f"{TRUNK}.embed_dim=96",
    f"{TRUNK}.num_heads=1",
    f"{TRUNK}.drop_path_rate=0.0",
    f"+{TRUNK}.stages=[1,2,7,2]",
    f"+{TRUNK}.global_att_blocks=[5,7,9]",
    f"+{TRUNK}.window_pos_embed_bkg_spatial_size=[7,7]",
    f"{MODEL}.image_encoder.neck.backbone_channel_list=[768,384,192,96]",
    f"{LAYER}.dropout=0.0",
    f"{LAYER}.self_attention.dropout=0.0",
    f"{LAYER}.cross_attention.dropout=0.0",
    f"{MODEL}.num_correction_pt_per_frame=2",
]
PROMPTS = {
    "masks": {"prob_to_use_pt_input_for_train": 0.0},
    "clicks": {"prob_to_use_pt_input_for_train": 1.0, "prob_to_use_box_input_for_train": 0.0},
    "boxes": {"prob_to_use_pt_input_for_train": 1.0, "prob_to_use_box_input_for_train": 1.0},
    "eval": {"prob_to_use_pt_input_for_eval": 1.0},
}
"""Settings of the annotator that is simulated; the last ones for evaluation."""


def tensorclass(kind: type) -> type:
    """What the model uses of `tensordict.tensorclass`: a dataclass with a batch size."""
    fields: Any = dataclass(kind)
    construct = fields.__init__

    def init(self: Any, *, batch_size: list[int], **values: Any) -> None:
        construct(self, **values)
        self.batch_size = torch.Size(batch_size)

    fields.__init__ = init
    return fields


def prepare() -> None:
    """Make the official training package importable without what only its trainer needs."""
    if importlib.util.find_spec("tensordict") is None:
        stand_in: Any = types.ModuleType("tensordict")
        stand_in.tensorclass = tensorclass
        sys.modules["tensordict"] = stand_in
    trainer: Any = types.ModuleType("training.trainer")
    trainer.CORE_LOSS_KEY = "core_loss"
    sys.modules["training.trainer"] = trainer
    sys.path.append(REPOSITORY)


def batch() -> Any:
    """Two objects on frames of noise; both move."""
    from training.utils.data_utils import BatchedVideoDatapoint

    torch.manual_seed(0)
    images = torch.randn(FRAMES, 1, 3, SIZE, SIZE)
    masks = torch.zeros(FRAMES, 2, SIZE, SIZE, dtype=torch.bool)
    for t in range(FRAMES):
        masks[t, 0, 20:60, 20 + 8 * t : 60 + 8 * t] = True
        masks[t, 1, 70:100, 70 - 8 * t : 110 - 8 * t] = True
        images[t, 0, :, masks[t].any(0)] += 1.5
    index = torch.tensor([[[t, 0], [t, 0]] for t in range(FRAMES)])
    return BatchedVideoDatapoint(
        img_batch=images,
        obj_to_frame_idx=index,
        masks=masks,
        metadata=None,
        dict_key="all",
        batch_size=[FRAMES],
    )


def main() -> None:
    prepare()
    import training.model.sam2 as official
    from hydra import compose
    from hydra.utils import instantiate

    def get_next_point(gt_masks: Any, pred_masks: Any, method: str) -> Any:
        return sample(gt_masks, pred_masks, "center")

    sample, official.get_next_point = official.get_next_point, get_next_point
    config = compose(config_name=CONFIG, overrides=OVERRIDES)
    model = instantiate(config.trainer.model, _convert_="all")  # as the official trainer
    assert type(model) is official.SAM2Train
    state = torch.load(CHECKPOINT, map_location="cpu", weights_only=True)["model"]
    model.load_state_dict(state)
    loss_function = instantiate(config.trainer.loss, _convert_="all")["all"]
    results: dict[str, Any] = {"state": sorted(state)}
    inputs = batch()
    for name, settings in PROMPTS.items():
        vars(model).update(settings)
        model.train(name != "eval")
        torch.manual_seed(1)
        model.rng.bit_generator.state = type(model.rng.bit_generator)(3).state
        outputs = model(inputs)
        losses = loss_function(outputs, inputs.masks)
        model.zero_grad()
        losses["core_loss"].backward()
        results[name] = {
            "losses": {key: loss.item() for key, loss in losses.items()},
            "masks": [frame["multistep_pred_masks"].detach() for frame in outputs],
            "scores": [frame["multistep_pred_ious"][-1].detach() for frame in outputs],
            "gradients": {
                key: gradient(model, key)
                for key in (
                    "image_encoder.trunk.patch_embed.proj.weight",
                    "memory_attention.layers.0.cross_attn_image.v_proj.weight",
                    "memory_encoder.out_proj.weight",
                    "sam_mask_decoder.mask_tokens.weight",
                    "maskmem_tpos_enc",
                )
            },
        }
    torch.save(results, OUTPUT)


def gradient(model: torch.nn.Module, name: str) -> torch.Tensor:
    value = dict(model.named_parameters())[name].grad
    assert value is not None, name
    return value


if __name__ == "__main__":
    main()
