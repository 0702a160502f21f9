"""The low-level steps of the official `SAM2Base`, for programs that call them directly.

Layouts are the official ones: feature lists are ordered fine to coarse, [H * W, B, C]; maps are [B,
C, H, W]; S is the image size in pixels, h = w = S / 16. `output_dict` has two entries,
"cond_frame_outputs" and "non_cond_frame_outputs": frame number -> result of `track_step`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_fast.config import NO_OBJECT_LOGIT
from sam2_fast.masks import non_overlapping
from sam2_fast.model import Sam2, composed
from sam2_fast.model.layers import to_map, to_tokens
from sam2_fast.model.position import PositionEmbeddingSine
from sam2_fast.model.prompt_encoder import padding_points
from sam2_fast.official.backbone import backbone_out_of
from sam2_fast.official.closest_frames import attended_outputs
from sam2_fast.official.memories import (
    bank_of,
    recalled_maps,
    recalled_pointers,
    recalled_positions,
)
from sam2_fast.ops.core import tracing
from sam2_fast.ops.core.native import is_plain
from sam2_fast.ops.mask_decoder.reference import select_one
from sam2_fast.ops.object_heads import mix_absent
from sam2_fast.types import Features, Points

NO_OBJ_SCORE = NO_OBJECT_LOGIT
"""Mask logit of an absent object, under its official name."""

PointInputs = Mapping[str, Tensor]
"""{"point_coords": [B, P, 2] in model pixels, "point_labels": [B, P]}."""

SamOutputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""Outputs of `_forward_sam_heads`.

Low-resolution masks [B, M, S/4, S/4], high-resolution masks [B, M, S, S], IoU [B, M], the best mask
at both sizes (M = 1), pointer [B, 256], presence logit [B, 1].
"""


class OfficialSteps(Sam2):
    """`track_step` and its parts. The model has no state: memories are passed in `output_dict`."""

    def forward_image(self, img_batch: Tensor) -> dict[str, Any]:
        """img_batch: [B, 3, S, S] -> official `backbone_out`: levels and positions, fine first."""
        images = self.in_weights_dtype(img_batch)
        features = self._features_by_op(images)
        if features is None:
            return composed.forward_image(self, images)
        return backbone_out_of(self, features)

    def _prepare_backbone_features(
        self, backbone_out: dict[str, Any]
    ) -> tuple[dict[str, Any], list[Tensor], list[Tensor], list[tuple]]:
        """A copy of `backbone_out`, then lists of features, positions and sizes of the levels.

        Features and positions are [H * W, B, C], sizes are (H, W).
        """
        maps = backbone_out["backbone_fpn"][-3:]
        positions = backbone_out["vision_pos_enc"][-3:]
        sizes = [tuple(x.shape[-2:]) for x in positions]
        return (
            backbone_out.copy(),
            [x.flatten(2).permute(2, 0, 1) for x in maps],
            [x.flatten(2).permute(2, 0, 1) for x in positions],
            sizes,
        )

    def _use_multimask(self, is_init_cond_frame: bool, point_inputs: PointInputs | None) -> bool:
        """Whether three masks are decoded."""
        count = 0 if point_inputs is None else point_inputs["point_labels"].shape[1]
        return self.options.use_multimask(count, is_init_cond_frame)

    def _forward_sam_heads(
        self,
        backbone_features: Tensor,
        point_inputs: PointInputs | None = None,
        mask_inputs: Tensor | None = None,
        high_res_features: Sequence[Tensor] | None = None,
        multimask_output: bool = False,
    ) -> SamOutputs:
        """Decode prompts of B objects.

        backbone_features: [B, 256, h, w], fused. mask_inputs: [B, 1, ., .] of any size.
        high_res_features: maps of S / 4 and S / 8. Raises ValueError if they are None.
        """
        batch = backbone_features.shape[0]
        features = _features(backbone_features, high_res_features)
        if point_inputs is None:
            points = padding_points(batch, backbone_features.device)
        else:
            points = Points(point_inputs["point_coords"], point_inputs["point_labels"])
        prediction = self.decode(
            backbone_features, features, points, self._resize_hint(mask_inputs), multimask_output
        )
        present = prediction.presence > 0
        low = torch.where(present[:, None, None], prediction.logits, NO_OBJ_SCORE)
        size = self.config.image_size
        high = F.interpolate(low, size=(size, size), mode="bilinear", align_corners=False)
        best_low, best_high, token = low, high, prediction.tokens[:, 0]
        if multimask_output:
            best = prediction.iou.argmax(-1)
            best_low = select_one(low, best)
            best_high = select_one(high, best)
            token = select_one(prediction.tokens, best)[:, 0]
        pointer = mix_absent(self.obj_ptr_proj(token), present, self.no_obj_ptr)
        return low, high, prediction.iou, best_low, best_high, pointer, prediction.presence

    def _resize_hint(self, mask: Tensor | None) -> Tensor | None:
        side = self.config.image_size // 4
        if mask is None or tuple(mask.shape[-2:]) == (side, side):
            return mask
        return F.interpolate(
            mask.float(), size=(side, side), mode="bilinear", align_corners=False, antialias=True
        )

    def _use_mask_as_output(
        self,
        backbone_features: Tensor,
        high_res_features: Sequence[Tensor] | None,
        mask_inputs: Tensor,
    ) -> SamOutputs:
        """Masks that a user drew as the result: logits of +-10, IoU 1, and a decoded pointer.

        mask_inputs: [B, 1, S, S], 1 on the object and 0 elsewhere, or soft.
        """
        mask = mask_inputs.float()
        high = mask * 20.0 - 10.0
        size = (high.shape[-2] // 4, high.shape[-1] // 4)
        low = F.interpolate(high, size=size, mode="bilinear", align_corners=False, antialias=True)
        pointer = self._forward_sam_heads(
            backbone_features=backbone_features,
            mask_inputs=self.mask_downsample(self.in_weights_dtype(mask)),
            high_res_features=high_res_features,
        )[5]
        present = (mask > 0).flatten(1).any(1, keepdim=True)
        pointer = mix_absent(pointer, present, self.no_obj_ptr)
        presence = present.to(high.dtype) * 20.0 - 10.0
        return low, high, mask.new_ones(mask.shape[0], 1), low, high, pointer, presence

    def _prepare_memory_conditioned_features(
        self,
        frame_idx: int,
        is_init_cond_frame: bool,
        current_vision_feats: list[Tensor],
        current_vision_pos_embeds: list[Tensor],
        feat_sizes: list[tuple[int, int]],
        output_dict: Mapping[str, Mapping[int, Any]],
        num_frames: int | None,
        track_in_reverse: bool = False,
    ) -> Tensor:
        """The coarsest features fused with the memories in `output_dict`: [B, 256, h, w].

        is_init_cond_frame: add the no-memory embedding instead of attending to memories.
        num_frames: None if unknown. Raises ValueError if no frame was prompted.
        """
        low = _as_map(current_vision_feats[-1], feat_sizes[-1])
        if self.num_maskmem == 0:
            return low
        if is_init_cond_frame:
            return self.without_memory(low)
        limits = self.recall_limits
        output_dict = attended_outputs(frame_idx, output_dict, limits.max_prompted)
        bank = bank_of(output_dict)
        step = -1 if track_in_reverse else 1
        recall = bank.recall(frame_idx, step, num_frames, *limits._replace(max_prompted=-1))
        num_maps = self.num_maskmem
        maps = [m.to(low.device) for m in recalled_maps(bank, recall, num_maps)]
        until = frame_idx if limits.past_pointers_only else None
        pointers = recalled_pointers(bank, recall, num_maps, until, track_in_reverse)
        pointers = [p.to(low.device) for p in pointers]
        map_positions = recalled_positions(output_dict, recall, num_maps)
        position = current_vision_pos_embeds[-1]
        if not self._are_own(position, map_positions):
            fused = composed.attend_with_positions(
                self,
                current_vision_feats[-1],
                position,
                maps,
                [to_tokens(p.to(low.device)) for p in map_positions],
                recall.rows,
                pointers,
                recall.ages,
                recall.longest,
            )
            return _as_map(fused, feat_sizes[-1])
        if pointers:
            stacked = torch.stack(pointers, 1)
        else:
            stacked = low.new_zeros(len(low), 0, self.config.hidden_dim)
        return self.attend(
            low,
            [[m[i] for m in maps] for i in range(len(low))],
            [recall.rows] * len(low),
            list(stacked),
            [recall.ages] * len(low),
            recall.longest,
        )

    def _are_own(self, position: Tensor, map_positions: Sequence[Tensor]) -> bool:
        """Whether these are the positions that this model computes, and not those of a caller.

        Views of the model's tables are recognised by their memory; copies of them are not.
        """
        if tracing.recording_reason() is not None or not is_plain(position, *map_positions):
            return False
        encoding = getattr(getattr(self.image_encoder, "neck", None), "position_encoding", None)
        if type(encoding) is not PositionEmbeddingSine:
            return False
        table = encoding.cache.get((self.config.grid, self.config.grid))
        if table is None or _memory_of(position) != _memory_of(table):
            return False
        return all(
            _memory_of(p) == _memory_of(self._memory_map_position(p.dtype)) for p in map_positions
        )

    def _encode_new_memory(
        self,
        current_vision_feats: list[Tensor],
        feat_sizes: list[tuple[int, int]],
        pred_masks_high_res: Tensor,
        object_score_logits: Tensor,
        is_mask_from_pts: bool,
    ) -> tuple[Tensor, list[Tensor]]:
        """Memory maps [B, 64, h, w] of masks [B, 1, S, S] logits, and their position encoding."""
        low = _as_map(current_vision_feats[-1], feat_sizes[-1])
        masks = pred_masks_high_res
        if self.options.non_overlap_masks_for_mem_enc and not self.training:
            masks = self._apply_non_overlapping_constraints(masks)
        binarize = (
            self.options.binarize_mask_from_pts_for_mem_enc
            and is_mask_from_pts
            and not self.training
        )
        tokens, position = self._encode_memory(low, masks, object_score_logits, binarize)
        if position is None:
            position = self._memory_map_position(tokens.dtype)
        memory = to_map(tokens, *feat_sizes[-1])
        return memory, [position.expand(memory.shape[0], -1, -1, -1)]

    def _encode_memory_in_output(
        self,
        current_vision_feats: list[Tensor],
        feat_sizes: list[tuple[int, int]],
        point_inputs: PointInputs | None,
        run_mem_encoder: bool,
        high_res_masks: Tensor,
        object_score_logits: Tensor,
        current_out: dict[str, Any],
    ) -> None:
        """Add "maskmem_features" and "maskmem_pos_enc" to `current_out`.

        Both are None if run_mem_encoder is False.
        """
        current_out["maskmem_features"] = current_out["maskmem_pos_enc"] = None
        if run_mem_encoder and self.num_maskmem > 0:
            current_out["maskmem_features"], current_out["maskmem_pos_enc"] = (
                self._encode_new_memory(
                    current_vision_feats=current_vision_feats,
                    feat_sizes=feat_sizes,
                    pred_masks_high_res=high_res_masks,
                    object_score_logits=object_score_logits,
                    is_mask_from_pts=point_inputs is not None,
                )
            )

    def _apply_non_overlapping_constraints(self, pred_masks: Tensor) -> Tensor:
        """`masks.non_overlapping` of pred_masks [B, 1, H, W]."""
        return non_overlapping(pred_masks)

    def _track_step(
        self,
        frame_idx: int,
        is_init_cond_frame: bool,
        current_vision_feats: list[Tensor],
        current_vision_pos_embeds: list[Tensor],
        feat_sizes: list[tuple[int, int]],
        point_inputs: PointInputs | None,
        mask_inputs: Tensor | None,
        output_dict: Mapping[str, Mapping[int, Any]],
        num_frames: int | None,
        track_in_reverse: bool,
        prev_sam_mask_logits: Tensor | None,
    ) -> tuple[dict[str, Any], SamOutputs, list[Tensor], Tensor]:
        """One frame without its memory.

        Returns the inputs as a dictionary, the outputs, the fine feature maps and the features that
        were decoded.
        """
        current_out: dict[str, Any] = {"point_inputs": point_inputs, "mask_inputs": mask_inputs}
        fine = [
            _as_map(x, size)
            for x, size in zip(current_vision_feats[:-1], feat_sizes[:-1], strict=True)
        ]
        if mask_inputs is not None:
            low = _as_map(current_vision_feats[-1], feat_sizes[-1])
            return current_out, self._use_mask_as_output(low, fine, mask_inputs), fine, low
        if prev_sam_mask_logits is not None and point_inputs is None:
            raise ValueError(
                "prev_sam_mask_logits: expected with point_inputs only, got it without them"
            )
        fused = self._prepare_memory_conditioned_features(
            frame_idx=frame_idx,
            is_init_cond_frame=is_init_cond_frame,
            current_vision_feats=current_vision_feats[-1:],
            current_vision_pos_embeds=current_vision_pos_embeds[-1:],
            feat_sizes=feat_sizes[-1:],
            output_dict=output_dict,
            num_frames=num_frames,
            track_in_reverse=track_in_reverse,
        )
        outputs = self._forward_sam_heads(
            backbone_features=fused,
            point_inputs=point_inputs,
            mask_inputs=prev_sam_mask_logits,
            high_res_features=fine,
            multimask_output=self._use_multimask(is_init_cond_frame, point_inputs),
        )
        return current_out, outputs, fine, fused

    def track_step(
        self,
        frame_idx: int,
        is_init_cond_frame: bool,
        current_vision_feats: list[Tensor],
        current_vision_pos_embeds: list[Tensor],
        feat_sizes: list[tuple[int, int]],
        point_inputs: PointInputs | None,
        mask_inputs: Tensor | None,
        output_dict: Mapping[str, Mapping[int, Any]],
        num_frames: int | None,
        track_in_reverse: bool = False,
        run_mem_encoder: bool = True,
        prev_sam_mask_logits: Tensor | None = None,
    ) -> dict[str, Any]:
        """One frame of B objects; the caller stores the result in `output_dict`.

        Keys: point_inputs, mask_inputs, pred_masks [B, 1, S/4, S/4], pred_masks_high_res [B, 1, S,
        S], obj_ptr [B, 256], object_score_logits [B, 1], maskmem_features [B, 64, h, w] and
        maskmem_pos_enc (both None without run_mem_encoder).
        """
        current_out, outputs, _, _ = self._track_step(
            frame_idx,
            is_init_cond_frame,
            current_vision_feats,
            current_vision_pos_embeds,
            feat_sizes,
            point_inputs,
            mask_inputs,
            output_dict,
            num_frames,
            track_in_reverse,
            prev_sam_mask_logits,
        )
        low, high, pointer, presence = outputs[3:]
        current_out.update(
            pred_masks=low, pred_masks_high_res=high, obj_ptr=pointer, object_score_logits=presence
        )
        self._encode_memory_in_output(
            current_vision_feats,
            feat_sizes,
            point_inputs,
            run_mem_encoder,
            high,
            presence,
            current_out,
        )
        return current_out


def _memory_of(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def _as_map(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """[H * W, B, C] -> [B, C, H, W]."""
    return tokens.permute(1, 2, 0).unflatten(2, size)


def _features(low: Tensor, fine: Sequence[Tensor] | None) -> Features:
    if fine is None or len(fine) != 2:
        raise ValueError(
            "high_res_features: expected the maps of stride 4 and 8; every released model uses them"
        )
    return Features(low, fine[1], fine[0])
