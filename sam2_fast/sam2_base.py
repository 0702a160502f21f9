"""`Sam2` under the official names: the attributes and methods of `SAM2Base` that third parties call."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from torch import Tensor

from sam2_fast.config import Options
from sam2_fast.model import Sam2
from sam2_fast.model.position import sine_position


class SAM2Base(Sam2):
    """The model with the official surface. Feature tuples are in the official layout: [H * W, B, C], fine to coarse."""

    num_feature_levels = 3
    directly_add_no_mem_embed = True
    use_high_res_features_in_sam = True
    use_obj_ptrs_in_encoder = True
    pred_obj_scores = True
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
        """Memory maps a frame can attend to from one prompt (7)."""
        return self.config.num_maps

    def forward_image(self, img_batch: Tensor) -> dict[str, Any]:
        """img_batch: [B, 3, S, S] -> official `backbone_out`: three levels and their position encodings, fine to coarse."""
        features = self.encode_image(img_batch)
        levels = [features.high, features.mid, features.low]
        dim = self.config.hidden_dim
        positions = [sine_position(dim, *x.shape[-2:]).to(x.device).expand(x.shape[0], -1, -1, -1).to(x.dtype) for x in levels]
        return {"vision_features": features.low, "vision_pos_enc": positions, "backbone_fpn": levels}

    def _prepare_backbone_features(self, backbone_out: dict[str, Any]) -> tuple[dict[str, Any], list[Tensor], list[Tensor], list[tuple]]:
        """Flatten `backbone_out` to (itself, features [H * W, B, C], positions [H * W, B, C], sizes (H, W)), a list entry a level."""
        maps, positions = backbone_out["backbone_fpn"][-3:], backbone_out["vision_pos_enc"][-3:]
        sizes = [tuple(x.shape[-2:]) for x in positions]
        return backbone_out.copy(), [x.flatten(2).permute(2, 0, 1) for x in maps], [x.flatten(2).permute(2, 0, 1) for x in positions], sizes

    def _encode_new_memory(
        self,
        current_vision_feats: list[Tensor],
        feat_sizes: list[tuple[int, int]],
        pred_masks_high_res: Tensor,
        object_score_logits: Tensor,
        is_mask_from_pts: bool,
    ) -> tuple[Tensor, list[Tensor]]:
        """Official layout in and out: memory [B, 64, h, w] and its position encoding."""
        low = current_vision_feats[-1].permute(1, 2, 0).unflatten(2, feat_sizes[-1])
        masks = pred_masks_high_res
        if self.options.non_overlap_masks_for_mem_enc:
            masks = self._apply_non_overlapping_constraints(masks)
        binarize = self.options.binarize_mask_from_pts_for_mem_enc and is_mask_from_pts
        memory = self.encode_memory(low, masks, object_score_logits, binarize).transpose(1, 2).unflatten(2, feat_sizes[-1])
        position = sine_position(self.config.memory_dim, *feat_sizes[-1]).to(memory)
        return memory, [position.expand(memory.shape[0], -1, -1, -1)]

    def _apply_non_overlapping_constraints(self, pred_masks: Tensor) -> Tensor:
        """pred_masks: [B, 1, H, W]; see `masks.non_overlapping`."""
        from sam2_fast.masks import non_overlapping

        return non_overlapping(pred_masks)


def _option(name: str) -> property:
    """An option as an attribute of the model, readable and writable under its official name."""

    def get(model: Sam2) -> Any:
        return getattr(model.options, name)

    def put(model: Sam2, value: Any) -> None:
        model.options = model.options.updated(**{name: value})

    return property(get, put)


for _field in fields(Options):
    setattr(SAM2Base, _field.name, _option(_field.name))
