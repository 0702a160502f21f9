"""The low-level steps of the official `SAM2Base`, for programs that drive the model themselves;
written with the verbs of `Sam2`.

Layouts are the official ones: feature lists run fine to coarse, [H * W, B, C]; maps [B, C, H, W]; S
is the image size in pixels, h = w = S / 16. `output_dict` holds "cond_frame_outputs" and
"non_cond_frame_outputs", frame number -> what `track_step` returned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_fast.config import NO_OBJECT_LOGIT
from sam2_fast.masks import non_overlapping
from sam2_fast.memory import MemoryBank
from sam2_fast.model import Sam2
from sam2_fast.model.position import sine_position
from sam2_fast.model.prompt_encoder import padding_points
from sam2_fast.ops.mask_decoder.reference import select_one
from sam2_fast.ops.object_heads import mix_absent
from sam2_fast.types import Features, FrameMemory, Points

NO_OBJ_SCORE = NO_OBJECT_LOGIT
"""Mask logit of an absent object, under its official name."""

PointInputs = Mapping[str, Tensor]
"""{"point_coords": [B, P, 2] in model pixels, "point_labels": [B, P]}."""

SamOutputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""Low-resolution masks [B, M, S/4, S/4], high-resolution ones [B, M, S, S], IoU [B, M], the best
mask at both sizes (M = 1), pointer
[B, 256], presence logit [B, 1]."""


class OfficialSteps(Sam2):
    """`track_step` and what it is made of. The model remembers nothing: memories travel in
    `output_dict`.
    """

    def forward_image(self, img_batch: Tensor) -> dict[str, Any]:
        """img_batch: [B, 3, S, S] -> official `backbone_out`: three levels and their position
        encodings, fine to coarse.
        """
        features = self.encode_image(img_batch)
        levels = [features.high, features.mid, features.low]
        dim = self.config.hidden_dim
        positions = [
            sine_position(dim, *x.shape[-2:])
            .to(x.device)
            .expand(x.shape[0], -1, -1, -1)
            .to(x.dtype)
            for x in levels
        ]
        return {
            "vision_features": features.low,
            "vision_pos_enc": positions,
            "backbone_fpn": levels,
        }

    def _prepare_backbone_features(
        self, backbone_out: dict[str, Any]
    ) -> tuple[dict[str, Any], list[Tensor], list[Tensor], list[tuple]]:
        """Flatten `backbone_out` to (itself, features [H * W, B, C], positions [H * W, B, C], sizes
        (H, W)), a list entry a level.
        """
        maps, positions = backbone_out["backbone_fpn"][-3:], backbone_out["vision_pos_enc"][-3:]
        sizes = [tuple(x.shape[-2:]) for x in positions]
        return (
            backbone_out.copy(),
            [x.flatten(2).permute(2, 0, 1) for x in maps],
            [x.flatten(2).permute(2, 0, 1) for x in positions],
            sizes,
        )

    def _use_multimask(self, is_init_cond_frame: bool, point_inputs: PointInputs | None) -> bool:
        """Whether three masks are decoded: by the number of points, and whether the frame starts
        afresh.
        """
        count = 0 if point_inputs is None else point_inputs["point_labels"].shape[1]
        return self.options.wants_multimask(count, is_init_cond_frame)

    def _forward_sam_heads(
        self,
        backbone_features: Tensor,
        point_inputs: PointInputs | None = None,
        mask_inputs: Tensor | None = None,
        high_res_features: Sequence[Tensor] | None = None,
        multimask_output: bool = False,
    ) -> SamOutputs:
        """Decode prompts of B objects: backbone_features [B, 256, h, w] fused; mask_inputs [B, 1,
        ., .] of any size, brought to the decoder's; high_res_features: maps of S / 4 and S / 8.
        Raises ValueError without high_res_features.
        """
        batch = backbone_features.shape[0]
        features = _features(backbone_features, high_res_features)
        if point_inputs is None:
            points = padding_points(batch, backbone_features.device)
        else:
            points = Points(point_inputs["point_coords"], point_inputs["point_labels"])
        found = self.decode(
            backbone_features, features, points, self._as_hint(mask_inputs), multimask_output
        )
        present = found.presence > 0
        low = torch.where(present[:, None, None], found.logits, NO_OBJ_SCORE)
        size = self.config.image_size
        high = F.interpolate(low, size=(size, size), mode="bilinear", align_corners=False)
        best_low, best_high, token = low, high, found.tokens[:, 0]
        if multimask_output:
            best = found.iou.argmax(-1)
            best_low, best_high, token = (
                select_one(low, best),
                select_one(high, best),
                select_one(found.tokens, best)[:, 0],
            )
        pointer = mix_absent(self.obj_ptr_proj(token), present, self.no_obj_ptr)
        return low, high, found.iou, best_low, best_high, pointer, found.presence

    def _as_hint(self, mask: Tensor | None) -> Tensor | None:
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
        """Masks that a user drew, [B, 1, S, S] of 0 and 1, as the result: logits of +-10, IoU 1,
        and a pointer from the decoder.
        """
        mask = mask_inputs.float()
        low, pointer, presence = self.point_to(
            _features(backbone_features, high_res_features), mask
        )
        high = mask * 20.0 - 10.0
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
        """[B, 256, h, w]: the coarsest features fused with the memories in `output_dict`, or, on a
        frame that starts afresh, with the no-memory embedding. num_frames: None where unknown.
        Raises ValueError where no frame was prompted.
        """
        low = _as_map(current_vision_feats[-1], feat_sizes[-1])
        if is_init_cond_frame:
            return self.without_memory(low)
        cond, non_cond = (
            {t: _memory(out) for t, out in output_dict[kind].items()} for kind in _KINDS
        )
        bank = MemoryBank(cond, non_cond)
        if not bank.prompted:
            raise ValueError(
                "output_dict: expected at least one frame in 'cond_frame_outputs', got none"
            )
        limits = self.recall_limits._replace(stride=1) if self.training else self.recall_limits
        recall = bank.recall(frame_idx, -1 if track_in_reverse else 1, num_frames, *limits)
        batch, device = low.shape[0], low.device
        # the oldest temporal row is the prompted frames', which come first; a frame may also be
        # tracked, and then counts twice
        prompted = [
            t
            for t, row in zip(recall.maps, recall.rows, strict=True)
            if row == self.config.num_maps - 1
        ]
        passed = [t for t in prompted if (t >= frame_idx if track_in_reverse else t <= frame_idx)]
        maps = [_map(m).to(device) for m in _look_up(bank, recall.maps, len(prompted))]
        pointers = [m.pointer.to(device) for m in _look_up(bank, recall.pointers, len(passed))]
        stacked = (
            torch.stack(pointers, 1)
            if pointers
            else low.new_zeros(batch, 0, self.config.hidden_dim)
        )
        of_each = [[m[i] for m in maps] for i in range(batch)]
        return self.attend(
            low,
            of_each,
            [recall.rows] * batch,
            list(stacked),
            [recall.ages] * batch,
            recall.longest,
        )

    def _encode_new_memory(
        self,
        current_vision_feats: list[Tensor],
        feat_sizes: list[tuple[int, int]],
        pred_masks_high_res: Tensor,
        object_score_logits: Tensor,
        is_mask_from_pts: bool,
    ) -> tuple[Tensor, list[Tensor]]:
        """Memory [B, 64, h, w] of masks [B, 1, S, S] logits, and its position encoding."""
        low = _as_map(current_vision_feats[-1], feat_sizes[-1])
        masks = pred_masks_high_res
        if self.options.non_overlap_masks_for_mem_enc and not self.training:
            masks = self._apply_non_overlapping_constraints(masks)
        binarize = (
            self.options.binarize_mask_from_pts_for_mem_enc
            and is_mask_from_pts
            and not self.training
        )
        memory = (
            self.encode_memory(low, masks, object_score_logits, binarize)
            .transpose(1, 2)
            .unflatten(2, feat_sizes[-1])
        )
        position = sine_position(self.config.memory_dim, *feat_sizes[-1]).to(memory)
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
        """Put "maskmem_features" and "maskmem_pos_enc" into `current_out`; None where
        run_mem_encoder is False.
        """
        current_out["maskmem_features"] = current_out["maskmem_pos_enc"] = None
        if run_mem_encoder:
            current_out["maskmem_features"], current_out["maskmem_pos_enc"] = (
                self._encode_new_memory(
                    current_vision_feats,
                    feat_sizes,
                    high_res_masks,
                    object_score_logits,
                    point_inputs is not None,
                )
            )

    def _apply_non_overlapping_constraints(self, pred_masks: Tensor) -> Tensor:
        """pred_masks: [B, 1, H, W]; see `masks.non_overlapping`."""
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
        """One frame up to its masks: (the inputs as a dictionary, outputs, fine feature maps, fused
        features).
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
            frame_idx,
            is_init_cond_frame,
            current_vision_feats[-1:],
            current_vision_pos_embeds[-1:],
            feat_sizes[-1:],
            output_dict,
            num_frames,
            track_in_reverse,
        )
        multimask = self._use_multimask(is_init_cond_frame, point_inputs)
        return (
            current_out,
            self._forward_sam_heads(fused, point_inputs, prev_sam_mask_logits, fine, multimask),
            fine,
            fused,
        )

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
        """One frame of B objects, as the official predictor has it. The caller stores the result in
        `output_dict`.

        Keys: point_inputs, mask_inputs, pred_masks [B, 1, S/4, S/4], pred_masks_high_res [B, 1, S,
        S], obj_ptr [B, 256], object_score_logits [B, 1], maskmem_features [B, 64, h, w] and
        maskmem_pos_enc (None without run_mem_encoder).
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


_KINDS = ("cond_frame_outputs", "non_cond_frame_outputs")


def _memory(out: Any) -> FrameMemory:
    """An official frame output, B objects, as a memory: pointer [B, 256], map [B, h * w, 64]."""
    features = out["maskmem_features"]
    flat = None if features is None else features.flatten(2).transpose(1, 2)
    return FrameMemory(out["obj_ptr"], out.get("object_score_logits"), flat)


def _look_up(bank: MemoryBank, frames: Sequence[int], prompted: int) -> list[FrameMemory]:
    """The memories of frames, of which the first `prompted` are meant as prompted ones."""
    tracked = {**bank.prompted, **bank.tracked}
    return [bank.prompted[t] if i < prompted else tracked[t] for i, t in enumerate(frames)]


def _map(memory: FrameMemory) -> Tensor:
    if memory.map is None:
        raise ValueError(
            "output_dict: a frame to attend to has no maskmem_features; run track_step with "
            "run_mem_encoder=True"
        )
    return memory.map


def _as_map(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """[H * W, B, C] -> [B, C, H, W]."""
    return tokens.permute(1, 2, 0).unflatten(2, size)


def _features(low: Tensor, fine: Sequence[Tensor] | None) -> Features:
    if fine is None or len(fine) != 2:
        raise ValueError(
            "high_res_features: expected the maps of stride 4 and 8; every released model uses them"
        )
    return Features(low, fine[1], fine[0])
