"""Tracking by the official steps of a predictor, for those that override some of them.

A subclass, an assigned attribute or a patched class may replace `track_step`,
`_run_single_frame_inference` and other methods of the official classes. They are then called as in
the official predictor: with the same keyword arguments, one object at a time.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from sam2_fast.official.predictor_steps import KINDS, PredictorSteps
from sam2_fast.types import Points
from sam2_fast.video.frame_steps import Result
from sam2_fast.video.lookahead import LookAhead
from sam2_fast.video.session import ObjectTrack, VideoSession
from sam2_fast.video.tracker import Output, Tracker
from sam2_fast.video.transactions import check_finite, check_output


class OfficialTracker(Tracker):
    """The transitions of sessions, computed by the official steps of the predictor.

    The results of objects are the dictionaries that the steps return.
    """

    _model: PredictorSteps
    has_own_output = False

    def open(self, session: VideoSession) -> None:
        """Encode the first frame of a video."""
        self._model._get_image_feature(session.state, frame_idx=0, batch_size=1)

    def output(self, session: VideoSession, frame: int, logits: Tensor) -> Output:
        """As in `Tracker`, by `_get_orig_video_res_output`."""
        _, masks = self._model._get_orig_video_res_output(session.state, logits)
        return frame, session.obj_ids, masks

    def newest_output(self, session: VideoSession, frame: int) -> Output:
        """As in `Tracker`, by `_consolidate_temp_output_across_obj`."""
        stored = session.state["temp_output_dict_per_obj"].values()
        consolidated = self._model._consolidate_temp_output_across_obj(
            session.state,
            frame,
            is_cond=any(frame in previews[KINDS[0]] for previews in stored),
            consolidate_at_video_res=True,
        )
        return self.output(session, frame, consolidated["pred_masks_video_res"])

    def commit(self, session: VideoSession) -> None:
        """As in `Tracker`."""
        session.protect()
        super().commit(session)

    def track_frame(self, session: VideoSession, frame: int, step: int) -> Tensor:
        """As in `Tracker`."""
        session.protect()
        return super().track_frame(session, frame, step)

    def _add_object(self, session: VideoSession, obj_id: Hashable) -> ObjectTrack:
        session.protect()
        self._model._obj_id_to_idx(session.state, obj_id)
        return session.object(obj_id)

    def _clear_around_prompt(self, session: VideoSession, track: ObjectTrack, frame: int) -> None:
        if not self._model.options.clear_non_cond_mem_around_input:
            return
        index = next(i for i, t in enumerate(session.objects.values()) if t.passed is track.passed)
        correction = track.bank.tracked.get(frame)
        self._model._clear_obj_non_cond_mem_around_input(session.state, frame, index)
        if correction is not None:
            track.bank.tracked[frame] = correction

    def _look_ahead(self, frame: int, ahead: LookAhead) -> None:
        ahead.read_after(frame)

    def _decode_points(
        self,
        session: VideoSession,
        track: ObjectTrack,
        frame: int,
        points: Points,
        hint: Tensor | None,
        is_initial: bool,
    ) -> Result:
        session.protect()
        inputs = {"point_coords": points.coords, "point_labels": points.labels}
        return self._step(
            session,
            track,
            frame,
            track.direction(frame),
            is_init_cond_frame=is_initial,
            run_mem_encoder=False,
            point_inputs=inputs,
            prev_sam_mask_logits=hint,
        )

    def _decode_mask(
        self,
        session: VideoSession,
        track: ObjectTrack,
        frame: int,
        mask: Tensor,
        is_initial: bool,
    ) -> Result:
        session.protect()
        return self._step(
            session,
            track,
            frame,
            track.direction(frame),
            is_init_cond_frame=is_initial,
            run_mem_encoder=False,
            mask_inputs=mask,
        )

    def _encode(
        self,
        session: VideoSession,
        frame: int,
        tracks: Sequence[ObjectTrack],
        previews: Sequence[Result],
    ) -> Sequence[Result]:
        size = self._model.config.image_size
        memories = []
        for track, preview in zip(tracks, previews, strict=True):
            logits = preview["pred_masks"].to(session.device)
            maps, positions = self._model._run_memory_encoder(
                inference_state=session.state,
                frame_idx=frame,
                batch_size=1,
                high_res_masks=F.interpolate(
                    logits, size=(size, size), mode="bilinear", align_corners=False
                ),
                object_score_logits=preview["object_score_logits"].to(session.device),
                is_mask_from_pts=True,
            )
            memories.append({**preview, "maskmem_features": maps, "maskmem_pos_enc": positions})
            check_finite(session, frame, [track], {"memory map": maps})
        return memories

    def _batches(self, items: Sequence[Any]) -> list[Sequence[Any]]:
        return [[item] for item in items]

    def _track_objects(
        self, session: VideoSession, tracks: Sequence[ObjectTrack], frame: int, step: int
    ) -> dict[int, Result]:
        return {
            id(track): self._step(
                session,
                track,
                frame,
                step,
                is_init_cond_frame=False,
                run_mem_encoder=True,
            )
            for track in tracks
        }

    def _step(
        self,
        session: VideoSession,
        track: ObjectTrack,
        frame: int,
        step: int,
        is_init_cond_frame: bool,
        run_mem_encoder: bool,
        point_inputs: dict[str, Tensor] | None = None,
        mask_inputs: Tensor | None = None,
        **hint: Tensor | None,
    ) -> Result:
        """The output of `_run_single_frame_inference` for one object."""
        output, _ = self._model._run_single_frame_inference(
            inference_state=session.state,
            output_dict=dict(zip(KINDS, (track.bank.prompted, track.bank.tracked), strict=True)),
            frame_idx=frame,
            batch_size=1,
            is_init_cond_frame=is_init_cond_frame,
            point_inputs=point_inputs,
            mask_inputs=mask_inputs,
            reverse=step < 0,
            run_mem_encoder=run_mem_encoder,
            **hint,
        )
        check_output(session, frame, track, output)
        return output
