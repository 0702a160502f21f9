"""The private steps of the official video predictor, for programs that call or override them.

`inference_state` is any mapping of the official layout; `output_dict` is one of the entries of its
"output_dict_per_obj": kind -> frame -> output of one object.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, MutableMapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_fast.config import NO_OBJECT_LOGIT as NO_OBJ_SCORE
from sam2_fast.masks import fill_holes as fill_holes_in_mask_scores
from sam2_fast.official.base import SAM2Base
from sam2_fast.official.steps import PointInputs
from sam2_fast.ops.core.lookups import LookedUp

State = MutableMapping[str, Any]

PER_OBJECT = (
    "point_inputs_per_obj",
    "mask_inputs_per_obj",
    "output_dict_per_obj",
    "temp_output_dict_per_obj",
    "frames_tracked_per_obj",
)
KINDS = ("cond_frame_outputs", "non_cond_frame_outputs")


_FILL_HOLES = LookedUp(globals(), "fill_holes_in_mask_scores")
_UNKNOWN_LENGTH = 16  # frames; with as many or more, the number has no effect


class ComputedPair(tuple[Any, ...]):
    """(image, backbone_out) in `cached_features` that a step has computed."""

    __slots__ = ()


class PredictorSteps(SAM2Base):
    """Steps on `inference_state` under their official names."""

    # objects

    def _obj_id_to_idx(self, inference_state: State, obj_id: Hashable) -> int:
        """The index of an object, which is added if its id is unknown."""
        return add_object(inference_state, obj_id)

    def _obj_idx_to_id(self, inference_state: State, obj_idx: int) -> Hashable:
        """The id of an object."""
        obj_id: Hashable = inference_state["obj_idx_to_id"][obj_idx]
        return obj_id

    def _get_obj_num(self, inference_state: State) -> int:
        """The number of objects."""
        return len(inference_state["obj_idx_to_id"])

    # steps of one frame

    def _get_image_feature(
        self, inference_state: State, frame_idx: int, batch_size: int
    ) -> tuple[Tensor, dict[str, Any], list[Tensor], list[Tensor], list[tuple]]:
        """The image [B, 3, S, S] of a frame, then the results of `_prepare_backbone_features`.

        Features in `cached_features` are used; those of another frame replace them.
        """
        cached = inference_state["cached_features"].get(frame_idx)
        if cached is None or cached[1] is None:
            image = inference_state["images"][frame_idx]
            image = image.to(inference_state["device"]).float()[None]
            cached = ComputedPair((image, self.forward_image(image)))
            inference_state["cached_features"] = {frame_idx: cached}
        image, backbone_out = cached
        expanded = {
            name: [x.expand(batch_size, -1, -1, -1) for x in backbone_out[name]]
            for name in ("backbone_fpn", "vision_pos_enc")
        }
        features = self._prepare_backbone_features(expanded)
        return (image.expand(batch_size, -1, -1, -1), *features)

    def _run_single_frame_inference(
        self,
        inference_state: State,
        output_dict: Mapping[str, Mapping[int, Any]],
        frame_idx: int,
        batch_size: int,
        is_init_cond_frame: bool,
        point_inputs: PointInputs | None,
        mask_inputs: Tensor | None,
        reverse: bool,
        run_mem_encoder: bool,
        prev_sam_mask_logits: Tensor | None = None,
    ) -> tuple[dict[str, Any], Tensor]:
        """`track_step`: the output to store, and its masks [B, 1, S/4, S/4] on the model's device.

        Holes of the masks are filled. Memory maps keep the dtype in which they were computed.
        """
        _, _, features, positions, sizes = self._get_image_feature(
            inference_state, frame_idx, batch_size
        )
        if point_inputs is not None and mask_inputs is not None:
            raise ValueError("point_inputs, mask_inputs: expected at most one of them, got both")
        count = inference_state["num_frames"]
        if count is None:
            count = max(frame_idx + 1, _UNKNOWN_LENGTH)
        output = self.track_step(
            frame_idx=frame_idx,
            is_init_cond_frame=is_init_cond_frame,
            current_vision_feats=features,
            current_vision_pos_embeds=positions,
            feat_sizes=sizes,
            point_inputs=point_inputs,
            mask_inputs=mask_inputs,
            output_dict=output_dict,
            num_frames=count,
            track_in_reverse=reverse,
            run_mem_encoder=run_mem_encoder,
            prev_sam_mask_logits=prev_sam_mask_logits,
        )
        storage = inference_state["storage_device"]
        maps, masks = output["maskmem_features"], output["pred_masks"]
        masks = filled(masks, self.options.fill_hole_area)
        stored = {
            "maskmem_features": None if maps is None else maps.to(storage),
            "maskmem_pos_enc": self._get_maskmem_pos_enc(inference_state, output),
            "pred_masks": masks.to(storage),
            "obj_ptr": output["obj_ptr"],
            "object_score_logits": output["object_score_logits"],
        }
        return stored, masks

    def _run_memory_encoder(
        self,
        inference_state: State,
        frame_idx: int,
        batch_size: int,
        high_res_masks: Tensor,
        object_score_logits: Tensor,
        is_mask_from_pts: bool,
    ) -> tuple[Tensor, list[Tensor]]:
        """Memory maps [B, 64, h, w] of masks [B, 1, S, S] logits, and their positions."""
        _, _, features, _, sizes = self._get_image_feature(inference_state, frame_idx, batch_size)
        maps, positions = self._encode_new_memory(
            current_vision_feats=features,
            feat_sizes=sizes,
            pred_masks_high_res=high_res_masks,
            object_score_logits=object_score_logits,
            is_mask_from_pts=is_mask_from_pts,
        )
        output = {"maskmem_pos_enc": positions}
        stored = self._get_maskmem_pos_enc(inference_state, output)
        assert stored is not None
        return maps.to(inference_state["storage_device"]), stored

    def _get_maskmem_pos_enc(
        self, inference_state: State, current_out: Mapping[str, Any]
    ) -> list[Tensor] | None:
        """The positions of all memory maps of a state, for the batch of an output.

        They are those of the first output, in `constants`; None for an output without a map.
        """
        positions = current_out["maskmem_pos_enc"]
        if positions is None:
            return None
        constants = inference_state["constants"]
        if "maskmem_pos_enc" not in constants:
            constants["maskmem_pos_enc"] = [x[:1] for x in positions]
        batch = positions[0].shape[0]
        shared = constants["maskmem_pos_enc"]
        return [x if len(x) == batch else x.expand(batch, -1, -1, -1) for x in shared]

    # masks of all objects

    def _consolidate_temp_output_across_obj(
        self,
        inference_state: State,
        frame_idx: int,
        is_cond: bool,
        consolidate_at_video_res: bool = False,
    ) -> dict[str, Tensor]:
        """The newest masks of all objects on a frame, [N, 1, ., .] float32; absent ones are -1024.

        Their key is "pred_masks_video_res", at video size, if consolidate_at_video_res is set, else
        "pred_masks", [N, 1, S/4, S/4].
        """
        side = self.image_size // 4
        size, key = (side, side), "pred_masks"
        if consolidate_at_video_res:
            size = inference_state["video_height"], inference_state["video_width"]
            key = "pred_masks_video_res"
        count = self._get_obj_num(inference_state)
        masks = torch.full(
            (count, 1, *size), NO_OBJ_SCORE, device=inference_state["storage_device"]
        )
        for i in range(count):
            output = _newest(inference_state, i, frame_idx, KINDS[0] if is_cond else KINDS[1])
            if output is not None and output["pred_masks"] is not None:
                masks[i : i + 1] = _resized(output["pred_masks"], size)
        return {key: masks}

    def _get_orig_video_res_output(
        self, inference_state: State, any_res_masks: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Masks [N, 1, ., .] on the model's device, and at video size.

        If `non_overlap_masks` is set, overlaps are removed from the latter.
        """
        masks = any_res_masks.to(inference_state["device"])
        size = inference_state["video_height"], inference_state["video_width"]
        resized = _resized(masks, size)
        if self.non_overlap_masks:
            resized = self._apply_non_overlapping_constraints(resized)
        return masks, resized

    # removal

    def _reset_tracking_results(self, inference_state: State) -> None:
        """Remove prompts and results of all objects; the objects remain."""
        for name in PER_OBJECT:
            for entry in inference_state[name].values():
                nested = "output_dict" in name
                for outputs in entry.values() if nested else [entry]:
                    outputs.clear()

    def _clear_non_cond_mem_around_input(self, inference_state: State, frame_idx: int) -> None:
        """Remove the outputs of tracked frames near a frame, of all objects."""
        for i in range(self._get_obj_num(inference_state)):
            self._clear_obj_non_cond_mem_around_input(inference_state, frame_idx, i)

    def _clear_obj_non_cond_mem_around_input(
        self, inference_state: State, frame_idx: int, obj_idx: int
    ) -> None:
        """Remove the outputs of tracked frames near a frame, of one object."""
        reach = self.options.memory_temporal_stride_for_eval * self.num_maskmem
        outputs = inference_state["output_dict_per_obj"][obj_idx][KINDS[1]]
        for frame in range(frame_idx - reach, frame_idx + reach + 1):
            outputs.pop(frame, None)


def add_object(state: State, obj_id: Hashable) -> int:
    """The index of an object, which is added if its id is unknown."""
    known: int | None = state["obj_id_to_idx"].get(obj_id)
    if known is not None:
        return known
    index = len(state["obj_id_to_idx"])
    for name in PER_OBJECT:
        nested = "output_dict" in name
        state[name][index] = {kind: {} for kind in KINDS} if nested else {}
    state["obj_idx_to_id"][index] = obj_id
    state["obj_ids"] = [*state["obj_id_to_idx"], obj_id]
    state["obj_id_to_idx"][obj_id] = index
    return index


def concat_points(
    old_point_inputs: PointInputs | None, new_points: Tensor, new_labels: Tensor
) -> dict[str, Tensor]:
    """Append points [B, P, 2] and labels [B, P] to earlier point inputs, if there are any."""
    if old_point_inputs is not None:
        new_points = torch.cat([old_point_inputs["point_coords"], new_points], dim=1)
        new_labels = torch.cat([old_point_inputs["point_labels"], new_labels], dim=1)
    return {"point_coords": new_points, "point_labels": new_labels}


def appended(old: PointInputs | None, coords: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """`concat_points`, or a function by which a program has replaced it."""
    return concat_points(old, coords, labels)


def filled(logits: Tensor, hole_area: int) -> Tensor:
    """Logits [N, 1, h, w] with small holes filled.

    hole_area: pixels of the largest hole that is filled; 0: none.
    """
    if hole_area <= 0:
        return logits
    if _FILL_HOLES.replaced():
        # A function of a program gets one object at a time, as in the official predictor.
        return torch.cat([fill_holes_in_mask_scores(part, hole_area) for part in logits.split(1)])
    return fill_holes_in_mask_scores(logits, hole_area)


def _newest(state: State, index: int, frame: int, kind: str) -> Mapping[str, Any] | None:
    """The newest output of an object on a frame: a preview of this kind, or a memory."""
    previews = state["temp_output_dict_per_obj"][index]
    memories = state["output_dict_per_obj"][index]
    for outputs in (previews[kind], *memories.values()):
        if frame in outputs:
            output: Mapping[str, Any] = outputs[frame]
            return output
    return None


def _resized(masks: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(masks.shape[-2:]) == size:
        return masks
    return F.interpolate(masks, size=size, mode="bilinear", align_corners=False)
