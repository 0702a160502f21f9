"""`Sam2` with the attributes and methods of the official `SAM2Base` that other programs use."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from sam2_fast.config import Options
from sam2_fast.model import Sam2
from sam2_fast.official.steps import OfficialSteps


class SAM2Base(OfficialSteps):
    """The model with the official API.

    Its steps are in `official/steps.py`, and its options are attributes.
    """

    num_feature_levels = 3
    directly_add_no_mem_embed = True
    use_high_res_features_in_sam = True
    use_obj_ptrs_in_encoder = True
    pred_obj_scores = True
    pred_obj_scores_mlp = True
    fixed_no_obj_ptr = True
    soft_no_obj_ptr = False
    use_multimask_token_for_obj_ptr = True
    use_mlp_for_obj_ptr_proj = True
    use_mask_input_as_output_without_sam = True
    only_obj_ptrs_in_the_past_for_eval = True
    iou_prediction_use_sigmoid = True
    sigmoid_scale_for_mem_enc = 20.0
    sigmoid_bias_for_mem_enc = -10.0
    backbone_stride = 16

    @property
    def image_size(self) -> int:
        """Side of the model's input, pixels."""
        return self.config.image_size

    @property
    def hidden_dim(self) -> int:
        """Channels of the low-resolution features (256)."""
        return self.config.hidden_dim

    @property
    def mem_dim(self) -> int:
        """Channels of a memory token (64)."""
        return self.config.memory_dim

    @property
    def num_maskmem(self) -> int:
        """Temporal positions of memory maps (7): prompted frames and the last six frames."""
        return self.config.num_maps

    @property
    def sam_prompt_embed_dim(self) -> int:
        """Channels of a prompt token (256)."""
        return self.config.hidden_dim

    @property
    def sam_image_embedding_size(self) -> int:
        """Side of the low-resolution features, tokens."""
        return self.config.grid


def _option(name: str) -> property:
    """An option as an attribute of the model, readable and writable under its official name."""

    def get(model: Sam2) -> Any:
        return getattr(model.options, name)

    def put(model: Sam2, value: Any) -> None:
        model.options = model.options.updated(**{name: value})

    return property(get, put)


for _field in fields(Options):
    setattr(SAM2Base, _field.name, _option(_field.name))
