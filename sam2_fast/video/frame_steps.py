"""The work of one frame: decode prompts, track objects and encode memories, by the model's ops.

A session is read here, and not changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from sam2_fast.memory import compact
from sam2_fast.model import Sam2
from sam2_fast.ops.core.transfer import upload
from sam2_fast.recording.cache import Graphs
from sam2_fast.recording.runner import Runner
from sam2_fast.types import Features, NoPoints, Points, Recall, Remembered, Tracked
from sam2_fast.video.cached_features import features_of
from sam2_fast.video.lookahead import LookAhead
from sam2_fast.video.positions import has_positions_of_session, new_positions
from sam2_fast.video.session import ObjectTrack, VideoSession
from sam2_fast.video.stored import frame_memories, preview_of, with_map
from sam2_fast.video.transactions import check_finite

OBJECTS_PER_PASS = 16
"""Objects of one forward pass. More objects take several passes, which bounds scratch memory."""

Result = dict[str, Any]
"""The result of one object on one frame: a `FrameMemory`, or what official steps have returned."""

Item = TypeVar("Item")


class FrameSteps:
    """The work of frames, for one call of a predictor.

    Whether the model can run from CUDA graphs and whether its weights have changed is determined
    once, so every call needs a new object.

    graphs: CUDA graphs to run the model from, or None to use none.
    ahead: features of the propagation that the call belongs to, or None.
    """

    def __init__(
        self, model: Sam2, graphs: Graphs | None = None, ahead: LookAhead | None = None
    ) -> None:
        self._model = model
        self._graphs = graphs
        self._ahead = ahead

    @cached_property
    def _runner(self) -> Runner:
        return Runner(self._model, self._graphs)

    @property
    def _hole_area(self) -> int:
        return self._model.options.fill_hole_area

    def _features(self, session: VideoSession, frame: int) -> Features:
        return features_of(session, frame, self._runner, self._ahead)

    def _by_official_steps(self) -> FrameSteps:
        """The same work by the official steps, which use positions from the session."""
        from sam2_fast.video.official_tracker import OfficialTracker  # it derives from this class

        return OfficialTracker(self._model, None, self._ahead)

    def _decode_points(
        self,
        session: VideoSession,
        track: ObjectTrack,
        frame: int,
        points: Points,
        hint: Tensor | None,
        is_initial: bool,
    ) -> Result:
        """The result of one object for points.

        is_initial: the frame is decoded without memories.
        """
        features = self._features(session, frame)
        if is_initial:
            low = self._model.without_memory(features.low)
        else:
            recall = self._recall(session, track, frame, track.direction(frame))
            if not has_positions_of_session(session, track, recall.maps):
                steps = self._by_official_steps()
                return steps._decode_points(session, track, frame, points, hint, is_initial)
            low = self._attend(features, self._remembered(session, [track], [recall]))
        multimask = self._model.options.use_multimask(points.labels.shape[1], is_initial)
        results = self._model.track(low, features, points, hint, multimask)
        return self._preview(session, frame, track, results)

    def _decode_mask(
        self,
        session: VideoSession,
        track: ObjectTrack,
        frame: int,
        mask: Tensor,
        is_initial: bool,
    ) -> Result:
        """The result of one object for a mask [1, 1, S, S] that a user drew."""
        results = self._model.point_to(self._features(session, frame), mask)
        return self._preview(session, frame, track, results)

    def _preview(
        self,
        session: VideoSession,
        frame: int,
        track: ObjectTrack,
        results: tuple[Tensor, Tensor, Tensor],
    ) -> Result:
        """The result of a prompt of one object, if it is finite."""
        named = dict(zip(("mask", "pointer", "presence"), results, strict=True))
        check_finite(session, frame, [track], named)
        return preview_of(session, results, self._hole_area)

    def _encode(
        self,
        session: VideoSession,
        frame: int,
        tracks: Sequence[ObjectTrack],
        previews: Sequence[Result],
    ) -> Sequence[Result]:
        """Previews of N objects on a frame as memories."""
        rows = [compact(preview) for preview in previews]
        all_logits = [row.logits for row in rows if row.logits is not None]
        logits = torch.stack(all_logits).to(session.device)
        presence = torch.stack([row.presence for row in rows]).to(session.device)
        maps = self._encode_prompted(session, frame, logits, presence)
        check_finite(session, frame, tracks, {"memory map": maps})
        maps = maps.to(session.storage)
        positions = new_positions(session, self._model, maps.dtype)
        return [
            with_map(preview, map_, positions)
            for preview, map_ in zip(previews, maps.unbind(), strict=True)
        ]

    def _encode_prompted(
        self, session: VideoSession, frame: int, logits: Tensor, presence: Tensor
    ) -> Tensor:
        """Memory maps [N, h * w, 64] of N prompted objects. logits: [N, 1, 4h, 4w]."""
        low = self._features(session, frame).low
        binarize = self._model.options.binarize_mask_from_pts_for_mem_enc
        return self._model.encode_memory(low, logits, presence, binarize)

    def _batches(self, items: Sequence[Item]) -> list[Sequence[Item]]:
        """Objects that go through the model together.

        A part that is called instead of computed by an op gets one object at a time, as in the
        official predictor.
        """
        if len(items) == 1:
            return [items]
        size = OBJECTS_PER_PASS if self._model.reason_to_call() is None else 1
        return [items[i : i + size] for i in range(0, len(items), size)]

    def _track_objects(
        self, session: VideoSession, tracks: Sequence[ObjectTrack], frame: int, step: int
    ) -> dict[int, Result]:
        """New memories of a frame, by the `id` of their track; the session is not changed."""
        if not tracks:
            return {}
        pairs = [(track, self._recall(session, track, frame, step)) for track in tracks]
        others = [t for t, r in pairs if not has_positions_of_session(session, t, r.maps)]
        new_memories: dict[int, Result] = {}
        if others:
            new_memories = self._by_official_steps()._track_objects(session, others, frame, step)
            pairs = [(track, recall) for track, recall in pairs if id(track) not in new_memories]
        features = self._features(session, frame)
        multimask = self._model.options.use_multimask(0, is_initial=False)
        for batch in self._batches(pairs):
            batch_tracks = [track for track, _ in batch]
            remembered = self._remembered(session, batch_tracks, [recall for _, recall in batch])
            eager = partial(self._track_eagerly, features, remembered, multimask)
            tracked = self._runner.track(features, remembered, multimask, eager)
            names = ("mask", "pointer", "presence", "memory map")
            check_finite(session, frame, batch_tracks, dict(zip(names, tracked, strict=True)))
            positions = new_positions(session, self._model, tracked.maps.dtype)
            memories = frame_memories(session, tracked, self._hole_area, positions)
            new_memories.update(zip(map(id, batch_tracks), memories, strict=True))
        return new_memories

    def _track_eagerly(
        self, features: Features, remembered: Remembered, multimask: bool
    ) -> Tracked:
        """Attend, decode and encode the memory of N objects without a CUDA graph."""
        model = self._model
        fused = self._attend(features, remembered)
        no_points = NoPoints(len(remembered.maps))
        logits, pointer, presence = model.track(fused, features, no_points, None, multimask)
        # The memory is encoded from the mask before its holes are filled.
        maps = model.encode_memory(features.low, logits, presence, False)
        return Tracked(logits, pointer, presence, maps)

    def _recall(self, session: VideoSession, track: ObjectTrack, frame: int, step: int) -> Recall:
        """Which memories of an object a frame attends to."""
        return track.bank.recall(frame, step, session.num_frames, *self._model.recall_limits)

    def _remembered(
        self, session: VideoSession, tracks: Sequence[ObjectTrack], recalls: Sequence[Recall]
    ) -> Remembered:
        """The memories that a frame attends to for each object, on the compute device."""
        pairs = list(zip(tracks, recalls, strict=True))
        device = session.device
        return Remembered(
            [[upload(t.bank.map(f), device) for f in r.maps] for t, r in pairs],
            [recall.rows for recall in recalls],
            [[upload(t.bank.pointer(f), device) for f in r.pointers] for t, r in pairs],
            [recall.ages for recall in recalls],
            recalls[0].longest,
        )

    def _attend(self, features: Features, remembered: Remembered) -> Tensor:
        """Fused features [N, 256, h, w] of N objects; their numbers of memories may differ."""
        model = self._model
        no_pointers = features.low.new_zeros(0, model.config.hidden_dim)
        pointers = [torch.stack(list(own)) if own else no_pointers for own in remembered.pointers]
        maps, rows, _, ages, longest = remembered
        return model.attend(features.low, maps, rows, pointers, ages, longest)
