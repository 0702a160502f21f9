"""The tracker: moves data between the model, which has no state, and sessions, which are state.

Every transition of the state table in docs/architecture.md is a method of `Tracker`. A method
computes first and changes the session last, so a method that raises has changed nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator, Hashable, Sequence
from functools import cached_property, partial
from typing import TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from sam2_fast.masks import non_overlapping, upsample
from sam2_fast.model import Sam2
from sam2_fast.official.overrides import needs_official_steps
from sam2_fast.ops.core.transfer import upload
from sam2_fast.recording.cache import Graphs
from sam2_fast.recording.runner import Runner
from sam2_fast.types import Features, FrameMemory, NoPoints, Points, Preview, Remembered, Tracked
from sam2_fast.video.lookahead import LookAhead
from sam2_fast.video.session import ObjectTrack, Prompt, VideoSession
from sam2_fast.video.stored import frame_memories, stacked_logits, stored_logits

Output = tuple[int, list[Hashable], Tensor]
"""(frame number, object ids, mask logits [N, 1, H, W] float32 at video size; above 0 is object)."""

OBJECTS_PER_PASS = 16
"""Objects of one forward pass. More objects take several passes, which bounds scratch memory."""

Results = tuple[Tensor, Tensor, Tensor]
"""Logits [N, 1, 4h, 4w], pointers [N, 256] and presence [N, 1] of N objects."""

Item = TypeVar("Item")


class Tracker:
    """The transitions of sessions, for one call of a predictor.

    Whether the model can run from CUDA graphs and whether its weights have changed is determined
    once, so every call needs a new tracker.

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

    def _stacked(
        self, session: VideoSession, rows: Sequence[Preview | FrameMemory | None]
    ) -> Tensor:
        return stacked_logits(session, rows, 4 * self._model.config.grid)

    @property
    def _hole_area(self) -> int:
        return self._model.options.fill_hole_area

    def _features(self, session: VideoSession, frame: int) -> Features:
        return session.features.get(frame, self._runner, self._ahead)

    # transitions

    def open(self, session: VideoSession) -> None:
        """Encode the first frame of a video."""
        self._features(session, 0)

    def preview_points(
        self, session: VideoSession, frame: int, obj_id: Hashable, points: Points, clear_old: bool
    ) -> None:
        """Decode a click or box prompt and store the result as a preview, until the next commit.

        On a frame that propagation has passed, the frame attends to the object's memories; on
        another frame it does not. The last logits of the frame, clamped to +-32, are the decoder's
        mask hint.
        """
        track = session.objects.get(obj_id, ObjectTrack())
        points = points if clear_old else track.with_earlier_points(frame, points)
        is_initial = frame not in track.passed or track.paused
        last = track.newest_result(frame)
        hint = None
        if last is not None and last.logits is not None:
            hint = last.logits[None].to(session.device).clamp(-32.0, 32.0)
        results = self._decode_points(session, track, frame, points, hint, is_initial)
        self._store_preview(session, obj_id, frame, Prompt(points=points), results)

    def preview_mask(
        self, session: VideoSession, frame: int, obj_id: Hashable, mask: Tensor
    ) -> None:
        """Store a mask [1, 1, S, S] that a user drew as the frame's result, as a preview."""
        track = session.objects.get(obj_id, ObjectTrack())
        results = self._decode_mask(session, track, frame, mask)
        self._store_preview(session, obj_id, frame, Prompt(mask=mask), results)

    def commit(self, session: VideoSession) -> None:
        """Encode every preview into a memory, from the mask that the user saw.

        The frame becomes a prompted one if it was decoded without memories, if it was prompted
        before, or if `add_all_frames_to_correct_as_cond` is set. Otherwise the memory is a
        correction and replaces that of the tracked frame.
        Source: official `propagate_in_video_preflight`.
        """
        encoded = self._encode_previews(session)
        for track, frame, memory in encoded:
            bank = track.bank
            is_initial = frame not in track.passed or track.paused or frame in bank.prompted
            if is_initial or self._model.options.add_all_frames_to_correct_as_cond:
                bank.prompted[frame] = memory
                bank.tracked.pop(frame, None)
                bank.corrected.discard(frame)
            else:
                bank.tracked[frame] = memory
                bank.corrected.add(frame)
            self._clear_around_prompt(track, frame)
            del track.previews[frame]

    def propagate(
        self,
        session: VideoSession,
        start: int | None,
        limit: int | None,
        step: int,
        progress: bool = False,
    ) -> Generator[Output, None, None]:
        """Commit, then track all objects frame by frame, in direction `step` (+1 or -1).

        start: the first frame; None: the first prompted one.
        limit: number of frames after the first one; None: to the end.
        """
        with torch.inference_mode(), session.exclusive("propagate_in_video"):
            session.require_objects()
            self.commit(session)
            first = session.first_prompted() if start is None else start
        resets = session.resets
        order = session.order(first, limit, step)
        known = order if isinstance(order, range) else range(0)
        ahead = LookAhead(session.frames, session.device, known)
        for frame in tqdm(order, desc="propagate in video", disable=not progress):
            if session.resets != resets:
                raise RuntimeError(
                    "the session was reset while it was being propagated; call "
                    "propagate_in_video again"
                )
            if not session.has_frame(frame):
                return
            # The caller may have changed the model since the last frame: check it again.
            tracker = tracker_for(self._model, self._graphs, ahead)
            yield tracker._pass_frame(session, frame, step, ahead)

    def track_frame(self, session: VideoSession, frame: int, step: int) -> Tensor:
        """Logits of all objects on one frame, [N, 1, 4h, 4w] float32, in the order of `objects`.

        Objects that were prompted or corrected on the frame keep that result. The frame attends to
        the memories of the others, many objects in one pass, and the results are stored as new
        memories. Paused objects are absent. If an error is raised, nothing is stored.
        """
        tracks = list(session.objects.values())
        settled = [track.bank.settled(frame) for track in tracks]
        pairs = list(zip(tracks, settled, strict=True))
        moving = [track for track, memory in pairs if memory is None and not track.paused]
        new_memories = self._track_objects(session, moving, frame, step)
        rows = [new_memories.get(id(track)) or memory for track, memory in pairs]
        for track in tracks:
            if id(track) in new_memories:
                track.bank.tracked[frame] = new_memories[id(track)]
            if not track.paused:
                track.passed[frame] = step
            if frame in track.bank.prompted:
                self._clear_around_prompt(track, frame)
            if session.keep == "reachable":
                self._drop_unreachable(session, track, frame, step)
        return self._stacked(session, rows)

    def clear(self, session: VideoSession, obj_id: Hashable, frame: int) -> None:
        """Remove an object's prompts on a frame.

        The memory of the frame is kept, as that of a tracked frame (official rule).
        """
        track = session.object(obj_id)
        track.prompts.pop(frame, None)
        track.previews.pop(frame, None)
        track.bank.corrected.discard(frame)
        memory = track.bank.prompted.pop(frame, None)
        if memory is not None:
            track.bank.tracked[frame] = memory
            track.passed.pop(frame, None)

    def remove(self, session: VideoSession, obj_id: Hashable) -> list[int]:
        """Remove an object; returns the frames on which it was prompted."""
        return list(session.objects.pop(obj_id).prompts)

    # outputs

    def newest_output(self, session: VideoSession, frame: int) -> Output:
        """The newest results of all objects on a frame."""
        rows = [track.newest_result(frame) for track in session.objects.values()]
        return self.output(session, frame, self._stacked(session, rows))

    def output(self, session: VideoSession, frame: int, logits: Tensor) -> Output:
        """logits [N, 1, 4h, 4w] at video size.

        If `non_overlap_masks` is set, overlaps are removed from this output only.
        """
        masks = upsample(logits, session.size)
        if self._model.options.non_overlap_masks:
            masks = non_overlapping(masks)
        return frame, session.obj_ids, masks

    # steps of the transitions

    @torch.inference_mode()
    def _pass_frame(self, session: VideoSession, frame: int, step: int, ahead: LookAhead) -> Output:
        """One frame of a propagation; new prompts are committed first."""
        with session.exclusive("propagate_in_video"):
            self.commit(session)
            logits = self.track_frame(session, frame, step)
            self._look_ahead(frame, ahead)
            return self.output(session, frame, logits)

    def _look_ahead(self, frame: int, ahead: LookAhead) -> None:
        """Read and encode frames after `frame`, once its work is enqueued."""
        ahead.advance(frame, self._runner)

    def _decode_points(
        self,
        session: VideoSession,
        track: ObjectTrack,
        frame: int,
        points: Points,
        hint: Tensor | None,
        is_initial: bool,
    ) -> Results:
        """Logits, pointer and presence of one object for points.

        is_initial: the frame is decoded without memories.
        """
        features = self._features(session, frame)
        if is_initial:
            low = self._model.without_memory(features.low)
        else:
            remembered = self._recall(session, [track], frame, track.passed[frame])
            low = self._attend(features, remembered)
        multimask = self._model.options.use_multimask(points.labels.shape[1], is_initial)
        return self._model.track(low, features, points, hint, multimask)

    def _decode_mask(
        self, session: VideoSession, track: ObjectTrack, frame: int, mask: Tensor
    ) -> Results:
        """Logits, pointer and presence of one object for a mask [1, 1, S, S] that a user drew."""
        return self._model.point_to(self._features(session, frame), mask)

    def _store_preview(
        self,
        session: VideoSession,
        obj_id: Hashable,
        frame: int,
        prompt: Prompt,
        results: Results,
    ) -> None:
        logits, pointer, presence = results
        stored = stored_logits(session, logits, self._hole_area)
        preview = Preview(pointer[0], presence[0], stored[0])
        track = session.objects.setdefault(obj_id, ObjectTrack())
        track.prompts[frame] = prompt
        track.previews[frame] = preview

    def _encode_previews(self, session: VideoSession) -> list[tuple[ObjectTrack, int, FrameMemory]]:
        """Every preview as a memory; the session is not changed."""
        pending: dict[int, list[tuple[ObjectTrack, Preview]]] = defaultdict(list)
        for track in session.objects.values():
            for frame, preview in track.previews.items():
                pending[frame].append((track, preview))
        encoded: list[tuple[ObjectTrack, int, FrameMemory]] = []
        for frame, items in pending.items():
            for batch in self._batches(items):
                logits = torch.stack([p.logits for _, p in batch]).to(session.device)
                presence = torch.stack([p.presence for _, p in batch]).to(session.device)
                maps = self._encode_prompted(session, frame, logits, presence)
                stored = maps.to(session.storage).unbind()
                for (track, preview), map_ in zip(batch, stored, strict=True):
                    encoded.append((track, frame, preview.committed(map_)))
        return encoded

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
    ) -> dict[int, FrameMemory]:
        """New memories of a frame, by the `id` of their track; the session is not changed."""
        if not tracks:
            return {}
        features = self._features(session, frame)
        multimask = self._model.options.use_multimask(0, is_initial=False)
        new_memories: dict[int, FrameMemory] = {}
        for batch in self._batches(tracks):
            remembered = self._recall(session, batch, frame, step)
            eager = partial(self._track_eagerly, features, remembered, multimask)
            tracked = self._runner.track(features, remembered, multimask, eager)
            memories = frame_memories(session, tracked, self._hole_area)
            new_memories |= {id(t): memory for t, memory in zip(batch, memories, strict=True)}
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

    def _recall(
        self, session: VideoSession, tracks: Sequence[ObjectTrack], frame: int, step: int
    ) -> Remembered:
        """The memories that a frame attends to for each object, on the compute device."""
        limits = self._model.recall_limits
        num_frames = session.num_frames
        recalls = [t.bank.recall(frame, step, num_frames, *limits) for t in tracks]
        pairs = list(zip(tracks, recalls, strict=True))
        return Remembered(
            [[upload(t.bank.map(f), session.device) for f in r.maps] for t, r in pairs],
            [recall.rows for recall in recalls],
            [[upload(t.bank.pointer(f), session.device) for f in r.pointers] for t, r in pairs],
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

    def _clear_around_prompt(self, track: ObjectTrack, frame: int) -> None:
        """Drop tracked memories near a prompted frame if `clear_non_cond_mem_around_input`."""
        options = self._model.options
        if options.clear_non_cond_mem_around_input:
            reach = options.memory_temporal_stride_for_eval * self._model.config.num_maps
            track.bank.clear_around(frame, reach)

    def _drop_unreachable(
        self, session: VideoSession, track: ObjectTrack, frame: int, step: int
    ) -> None:
        """Drop memories that no later frame can attend to."""
        limits = self._model.recall_limits
        max_map_age = (limits.num_maps - 1) * limits.stride
        max_pointer_age = limits.num_pointers - 1
        both = session.num_frames is not None
        track.bank.forget(frame, step, max_map_age, max_pointer_age, both)
        stored = track.bank.tracked.keys() | track.bank.prompted.keys()
        track.passed = {f: direction for f, direction in track.passed.items() if f in stored}


def tracker_for(
    model: Sam2, graphs: Graphs | None = None, ahead: LookAhead | None = None
) -> Tracker:
    """A tracker for one call; it calls the official steps of a model that overrides some of them.

    The arguments are those of `Tracker`.
    """
    if needs_official_steps(model):
        from sam2_fast.video.official_tracker import OfficialTracker  # it derives from Tracker

        return OfficialTracker(model, None, ahead)
    return Tracker(model, graphs, ahead)
