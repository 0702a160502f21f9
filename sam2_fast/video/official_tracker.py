"""Tracking by the official steps of a model, for models that override some of them.

A subclass, an assigned attribute or a patched class may replace `track_step` and the other methods
of the official `SAM2Base`. They are then called as in the official predictor: with the same keyword
arguments, one object at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from sam2_fast.model.layers import to_tokens
from sam2_fast.official.base import SAM2Base
from sam2_fast.recording.fingerprint import Fingerprint
from sam2_fast.types import FrameMemory, Points, Tracked
from sam2_fast.video.frame_outputs import FrameOutputs
from sam2_fast.video.lookahead import LookAhead
from sam2_fast.video.session import ObjectTrack, VideoSession
from sam2_fast.video.stored import frame_memories, stored_logits
from sam2_fast.video.tracker import Results, Tracker

_UNKNOWN_LENGTH = 16  # frames; with as many or more, the number has no effect


class OfficialTracker(Tracker):
    """The transitions of sessions, computed by the official steps of the model."""

    _model: SAM2Base
    _new_position: Tensor | None = None
    """Positions of memory maps, from this call's first memory; None if the session has them."""

    @cached_property
    def _encoder(self) -> _ForwardImage:
        return _ForwardImage(self._model)

    def _backbone(self, session: VideoSession, frame: int) -> list[Any]:
        """Features, positions and sizes of the levels of a frame, for one object."""
        output = session.features.get(frame, self._encoder, self._ahead)
        single = {
            "backbone_fpn": [*output["backbone_fpn"]],
            "vision_pos_enc": [*output["vision_pos_enc"]],
        }
        return list(self._model._prepare_backbone_features(single)[1:])

    def open(self, session: VideoSession) -> None:
        """Encode the first frame of a video."""
        session.features.get(0, self._encoder, self._ahead)

    def commit(self, session: VideoSession) -> None:
        """As in `Tracker`; the first memory of a session also decides the positions of its maps."""
        super().commit(session)
        self._commit_position(session)

    def track_frame(self, session: VideoSession, frame: int, step: int) -> Tensor:
        """As in `Tracker`; the first memory of a session also decides the positions of its maps."""
        logits = super().track_frame(session, frame, step)
        self._commit_position(session)
        return logits

    def _commit_position(self, session: VideoSession) -> None:
        if self._new_position is not None:
            session.map_position, self._new_position = self._new_position, None

    def _look_ahead(self, frame: int, ahead: LookAhead) -> None:
        ahead.advance(frame, self._encoder)

    def _decode_points(
        self,
        session: VideoSession,
        track: ObjectTrack,
        frame: int,
        points: Points,
        hint: Tensor | None,
        is_initial: bool,
    ) -> Results:
        inputs = {"point_coords": points.coords, "point_labels": points.labels}
        arguments = {"point_inputs": inputs, "mask_inputs": None, "prev_sam_mask_logits": hint}
        step = track.passed.get(frame, 1)
        return _results(self._step(session, track, frame, step, is_initial, False, **arguments))

    def _decode_mask(
        self, session: VideoSession, track: ObjectTrack, frame: int, mask: Tensor
    ) -> Results:
        is_initial = frame not in track.passed or track.paused
        arguments = {"point_inputs": None, "mask_inputs": mask, "prev_sam_mask_logits": None}
        step = track.passed.get(frame, 1)
        return _results(self._step(session, track, frame, step, is_initial, False, **arguments))

    def _encode_prompted(
        self, session: VideoSession, frame: int, logits: Tensor, presence: Tensor
    ) -> Tensor:
        features, _, sizes = self._backbone(session, frame)
        size = self._model.config.image_size
        masks = F.interpolate(logits, size=(size, size), mode="bilinear", align_corners=False)
        maps, positions = self._model._encode_new_memory(
            current_vision_feats=features,
            feat_sizes=sizes,
            pred_masks_high_res=masks,
            object_score_logits=presence,
            is_mask_from_pts=True,
        )
        self._remember_position(session, positions)
        return to_tokens(maps)

    def _remember_position(self, session: VideoSession, positions: Sequence[Tensor]) -> None:
        """Keep the positions of the first memory for all of them, as the official predictor."""
        if self._position(session) is None:
            self._new_position = positions[-1][:1]

    def _position(self, session: VideoSession) -> Tensor | None:
        """Positions of memory maps, [1, 64, h, w]; None before the first memory."""
        return self._new_position if session.map_position is None else session.map_position

    def _batches(self, items: Sequence[Any]) -> list[Sequence[Any]]:
        return [[item] for item in items]

    def _track_objects(
        self, session: VideoSession, tracks: Sequence[ObjectTrack], frame: int, step: int
    ) -> dict[int, FrameMemory]:
        memories = {}
        for track in tracks:
            output = self._step(
                session,
                track,
                frame,
                step,
                is_initial=False,
                run_mem_encoder=True,
                point_inputs=None,
                mask_inputs=None,
                prev_sam_mask_logits=None,
            )
            memories[id(track)] = self._memory(session, output)
        return memories

    def _memory(self, session: VideoSession, output: dict[str, Any]) -> FrameMemory:
        logits, pointer, presence = _results(output)
        maps = output["maskmem_features"]
        if maps is None:
            stored = stored_logits(session, logits, self._hole_area)
            return FrameMemory(pointer[0], presence[0], None, stored[0])
        self._remember_position(session, output["maskmem_pos_enc"])
        tracked = Tracked(logits, pointer, presence, to_tokens(maps))
        return frame_memories(session, tracked, self._hole_area)[0]

    def _step(
        self,
        session: VideoSession,
        track: ObjectTrack,
        frame: int,
        step: int,
        is_initial: bool,
        run_mem_encoder: bool,
        **inputs: Any,
    ) -> dict[str, Any]:
        """`track_step` of one object."""
        features, positions, sizes = self._backbone(session, frame)
        bank = track.bank
        view = FrameOutputs.views(bank, self._model, self._position(session))
        count = session.num_frames
        return self._model.track_step(
            frame_idx=frame,
            is_init_cond_frame=is_initial,
            current_vision_feats=features,
            current_vision_pos_embeds=positions,
            feat_sizes=sizes,
            output_dict=view,
            num_frames=max(frame + 1, _UNKNOWN_LENGTH) if count is None else count,
            track_in_reverse=step < 0,
            run_mem_encoder=run_mem_encoder,
            **inputs,
        )


class _ForwardImage:
    """Encodes frames by `forward_image`, in place of a `Runner`."""

    encoder_graphs = None
    result_type = dict

    def __init__(self, model: SAM2Base) -> None:
        self.model = model

    def encode(self, images: Tensor, fingerprint: Fingerprint | None = None) -> dict[str, Any]:
        return self.model.forward_image(images)

    def fingerprint(self) -> Fingerprint | None:
        return None


def _results(output: dict[str, Any]) -> Results:
    return output["pred_masks"], output["obj_ptr"], output["object_score_logits"]
