"""The tracker moves data between the model, which never remembers, and sessions, which never
compute.

Every transition of the state table (docs/architecture.md) is a method of `Tracker`. Each
computes first and changes the session last: one that raises has changed nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator, Hashable, Sequence
from functools import cached_property, partial
from typing import TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from sam2_fast.config import NO_OBJECT_LOGIT
from sam2_fast.masks import fill_holes, non_overlapping, upsample
from sam2_fast.model import Sam2
from sam2_fast.ops.core.transfer import upload
from sam2_fast.recording.cache import Graphs, Runner
from sam2_fast.types import Features, FrameMemory, NoPoints, Points, Preview, Remembered, Tracked
from sam2_fast.video.lookahead import LookAhead
from sam2_fast.video.session import ObjectTrack, Prompt, VideoSession

Output = tuple[int, list[Hashable], Tensor]
"""(frame number, object ids, mask logits [N, 1, H, W] float32 at video size; above 0 is object)."""

OBJECTS_PER_PASS = 16
"""Objects stacked in one forward pass; more take several passes, so that scratch memory is
bounded."""

Item = TypeVar("Item")


class Tracker:
    """What happens to the sessions of one model in one call.

    It looks up once whether the model can run from CUDA graphs and whether its weights have
    changed: a later call needs a tracker of its own.

    graphs: CUDA graphs to run the model from; None: none are used.
    ahead: of the pass over a video that the call is part of.
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

    def _features(self, session: VideoSession, frame: int) -> Features:
        return session.features.get(frame, self._runner, self._ahead)

    # transitions

    def open(self, session: VideoSession) -> None:
        """Encode the first frame of a video."""
        self._features(session, 0)

    def preview_points(
        self, session: VideoSession, frame: int, obj_id: Hashable, points: Points, clear_old: bool
    ) -> None:
        """Decode a click or box prompt and hold the result as a preview; the next commit takes it.

        On a frame that propagation passed the object's memories are attended to; elsewhere it
        starts afresh. The last logits of the frame are the decoder's hint (clamped to +-32).
        """
        track = session.objects.get(obj_id, ObjectTrack())
        points = points if clear_old else track.with_earlier(frame, points)
        features = self._features(session, frame)
        afresh = frame not in track.passed or track.paused
        if afresh:
            low = self._model.without_memory(features.low)
        else:
            remembered = self._remembered(session, [track], frame, track.passed[frame])
            low = self._attend(features, remembered)
        shown = track.shown(frame)
        hint = None
        if shown is not None and shown.logits is not None:
            hint = shown.logits[None].to(session.device).clamp(-32.0, 32.0)
        multimask = self._model.options.wants_multimask(points.labels.shape[1], afresh)
        results = self._model.track(low, features, points, hint, multimask)
        self._hold(session, obj_id, frame, Prompt(points=points), results)

    def preview_mask(
        self, session: VideoSession, frame: int, obj_id: Hashable, mask: Tensor
    ) -> None:
        """Take a mask [1, 1, S, S] that a user drew as the frame's result, as a preview."""
        features = self._features(session, frame)
        results = self._model.point_to(features, mask)
        self._hold(session, obj_id, frame, Prompt(mask=mask), results)

    def commit(self, session: VideoSession) -> None:
        """Turn every preview into a memory, encoded from what the user saw.

        It becomes prompted where the object starts afresh, was prompted before, or
        `add_all_frames_to_correct_as_cond` is set; a correction of a tracked frame replaces that
        frame's memory. Source: official `propagate_in_video_preflight`.
        """
        encoded = self._encoded_previews(session)
        for track, frame, memory in encoded:
            bank = track.bank
            afresh = frame not in track.passed or track.paused or frame in bank.prompted
            if afresh or self._model.options.add_all_frames_to_correct_as_cond:
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
        """Commit, then track all objects frame by frame, from `start` (None: the first prompted
        frame) in direction `step`. limit: as `max_frame_num_to_track`."""
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
            # the caller had control: the model may have changed since the last frame
            tracker = Tracker(self._model, self._graphs, ahead)
            yield tracker._pass_frame(session, frame, step, ahead)

    def track_frame(self, session: VideoSession, frame: int, step: int) -> Tensor:
        """Results of all objects on one frame: logits [N, 1, 4h, 4w] float32, in the order of
        `session.objects`.

        Prompted and corrected frames are shown as they are; other objects attend to their
        memories, all of them stacked, and remember the result. Paused objects are absent. The
        frame is stored for all objects or, if anything raises, for none.
        """
        tracks = list(session.objects.values())
        settled = [track.bank.settled(frame) for track in tracks]
        pairs = list(zip(tracks, settled, strict=True))
        moving = [track for track, memory in pairs if memory is None and not track.paused]
        fresh = self._tracked(session, moving, frame, step)
        rows = [fresh.get(id(track)) or memory for track, memory in pairs]
        for track in tracks:
            if id(track) in fresh:
                track.bank.tracked[frame] = fresh[id(track)]
            if not track.paused:
                track.passed[frame] = step
            if frame in track.bank.prompted:
                self._clear_around_prompt(track, frame)
            if session.keep == "reachable":
                self._forget(session, track, frame, step)
        return self._stacked(session, rows)

    def clear(self, session: VideoSession, obj_id: Hashable, frame: int) -> None:
        """Remove an object's prompts on a frame; what was remembered of it goes on as a tracked
        memory (official rule)."""
        track = session.object(obj_id)
        track.prompts.pop(frame, None)
        track.previews.pop(frame, None)
        track.bank.corrected.discard(frame)
        memory = track.bank.prompted.pop(frame, None)
        if memory is not None:
            track.bank.tracked[frame] = memory
            track.passed.pop(frame, None)

    def remove(self, session: VideoSession, obj_id: Hashable) -> list[int]:
        """Remove an object; returns the frames that it was prompted on."""
        return list(session.objects.pop(obj_id).prompts)

    # what a session shows

    def shown(self, session: VideoSession, frame: int) -> Output:
        """The newest results of all objects on a frame."""
        rows = [track.shown(frame) for track in session.objects.values()]
        return self.output(session, frame, self._stacked(session, rows))

    def output(self, session: VideoSession, frame: int, logits: Tensor) -> Output:
        """logits [N, 1, 4h, 4w] at video size; overlaps are removed here, on the output only."""
        masks = upsample(logits, session.size)
        if self._model.options.non_overlap_masks:
            masks = non_overlapping(masks)
        return frame, session.obj_ids, masks

    # steps of the transitions

    @torch.inference_mode()
    def _pass_frame(self, session: VideoSession, frame: int, step: int, ahead: LookAhead) -> Output:
        """One frame of a propagation; prompts that were given since the last one are committed."""
        with session.exclusive("propagate_in_video"):
            self.commit(session)
            logits = self.track_frame(session, frame, step)
            ahead.advance(frame, self._runner)
            return self.output(session, frame, logits)

    def _hold(
        self,
        session: VideoSession,
        obj_id: Hashable,
        frame: int,
        prompt: Prompt,
        results: tuple[Tensor, Tensor, Tensor],
    ) -> None:
        """results: logits, pointer and presence of the object."""
        logits, pointer, presence = results
        shown = self._stored_logits(session, logits)
        preview = Preview(pointer[0], presence[0], shown[0])
        track = session.objects.setdefault(obj_id, ObjectTrack())
        track.prompts[frame] = prompt
        track.previews[frame] = preview

    def _encoded_previews(
        self, session: VideoSession
    ) -> list[tuple[ObjectTrack, int, FrameMemory]]:
        """Every preview as a memory; the session stays as it is."""
        pending: dict[int, list[tuple[ObjectTrack, Preview]]] = defaultdict(list)
        for track in session.objects.values():
            for frame, preview in track.previews.items():
                pending[frame].append((track, preview))
        binarize = self._model.options.binarize_mask_from_pts_for_mem_enc
        encoded: list[tuple[ObjectTrack, int, FrameMemory]] = []
        for frame, items in pending.items():
            low = self._features(session, frame).low
            for part in _parts(items):
                logits = torch.stack([p.logits for _, p in part]).to(session.device)
                presence = torch.stack([p.presence for _, p in part]).to(session.device)
                maps = self._model.encode_memory(low, logits, presence, binarize)
                stored = maps.to(session.storage).unbind()
                for (track, preview), map_ in zip(part, stored, strict=True):
                    encoded.append((track, frame, preview.committed(map_)))
        return encoded

    def _tracked(
        self, session: VideoSession, tracks: Sequence[ObjectTrack], frame: int, step: int
    ) -> dict[int, FrameMemory]:
        """New memories of a frame by the `id` of their track; the session stays as it is."""
        if not tracks:
            return {}
        features = self._features(session, frame)
        multimask = self._model.options.wants_multimask(0, afresh=False)
        fresh: dict[int, FrameMemory] = {}
        for part in _parts(tracks):
            remembered = self._remembered(session, part, frame, step)
            eager = partial(self._track_eagerly, features, remembered, multimask)
            tracked = self._runner.track(features, remembered, multimask, eager)
            memories = self._stored(session, tracked)
            fresh |= {id(t): memory for t, memory in zip(part, memories, strict=True)}
        return fresh

    def _track_eagerly(
        self, features: Features, remembered: Remembered, multimask: bool
    ) -> Tracked:
        """Attend, decode and encode the memory of N objects without a recording."""
        model = self._model
        fused = self._attend(features, remembered)
        nothing = NoPoints(len(remembered.maps))
        logits, pointer, presence = model.track(fused, features, nothing, None, multimask)
        # from the mask before its holes are filled
        maps = model.encode_memory(features.low, logits, presence, False)
        return Tracked(logits, pointer, presence, maps)

    def _remembered(
        self, session: VideoSession, tracks: Sequence[ObjectTrack], frame: int, step: int
    ) -> Remembered:
        """What objects attend to on a frame, on the compute device."""
        limits, num_frames = self._model.recall_limits, session.num_frames
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
        """Fused features [N, 256, h, w] of N objects, which may remember differently much."""
        model = self._model
        nothing = features.low.new_zeros(0, model.config.hidden_dim)
        pointers = [torch.stack(list(own)) if own else nothing for own in remembered.pointers]
        maps, rows, _, ages, longest = remembered
        return model.attend(features.low, maps, rows, pointers, ages, longest)

    def _stored(self, session: VideoSession, tracked: Tracked) -> list[FrameMemory]:
        """One memory an object, where the session stores its state."""
        logits = self._stored_logits(session, tracked.logits)
        maps = tracked.maps.to(session.storage)
        parts = tracked.pointer, tracked.presence, maps, logits
        return [FrameMemory(*row) for row in zip(*(x.unbind() for x in parts), strict=True)]

    def _stored_logits(self, session: VideoSession, logits: Tensor) -> Tensor:
        """[N, 1, 4h, 4w] with small holes filled, where the session stores its state."""
        area = self._model.options.fill_hole_area
        return (fill_holes(logits, area) if area > 0 else logits).to(session.storage)

    def _stacked(
        self, session: VideoSession, rows: Sequence[Preview | FrameMemory | None]
    ) -> Tensor:
        """[N, 1, 4h, 4w] float32 on the compute device; without a result an object is absent."""
        side, device = 4 * self._model.config.grid, session.device
        if not rows:
            return torch.zeros(0, 1, side, side, device=device)
        logits = [None if row is None else row.logits for row in rows]
        known = [x.to(device) for x in logits if x is not None]
        if len(known) == len(rows):
            return torch.stack(known)
        absent = torch.full((1, side, side), NO_OBJECT_LOGIT, device=device)
        return torch.stack([absent if x is None else x.to(device) for x in logits])

    def _clear_around_prompt(self, track: ObjectTrack, frame: int) -> None:
        """Drop tracked memories near a prompted frame where the options say so."""
        options = self._model.options
        if options.clear_non_cond_mem_around_input:
            reach = options.memory_temporal_stride_for_eval * self._model.config.num_maps
            track.bank.clear_around(frame, reach)

    def _forget(self, session: VideoSession, track: ObjectTrack, frame: int, step: int) -> None:
        """Drop what no later frame can attend to."""
        limits = self._model.recall_limits
        maps, pointers = (limits.num_maps - 1) * limits.stride, limits.num_pointers - 1
        track.bank.forget(frame, step, maps, pointers, both=session.num_frames is not None)
        kept = track.bank.tracked.keys() | track.bank.prompted.keys()
        track.passed = {f: direction for f, direction in track.passed.items() if f in kept}


def _parts(items: Sequence[Item]) -> list[Sequence[Item]]:
    return [items[i : i + OBJECTS_PER_PASS] for i in range(0, len(items), OBJECTS_PER_PASS)]
