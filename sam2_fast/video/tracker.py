"""The tracker: moves data between the model, which has no state, and sessions, which are state.

Every transition of the state table in docs/architecture.md is a method of `Tracker`. A method
computes first and changes the session last, and records each change in the session's journal.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Generator, Hashable, Sequence
from functools import partial

from torch import Tensor

from sam2_fast.masks import non_overlapping, upsample
from sam2_fast.memory import FrameMemory, compact
from sam2_fast.memory.frame_memory import has_map
from sam2_fast.model import Sam2
from sam2_fast.official.overrides import needs_official_steps
from sam2_fast.recording.cache import Graphs
from sam2_fast.types import Points
from sam2_fast.video.frame_steps import FrameSteps, Result
from sam2_fast.video.frames import StreamFrames
from sam2_fast.video.full_size import no_output
from sam2_fast.video.lookahead import LookAhead
from sam2_fast.video.positions import has_own_positions, keep_positions
from sam2_fast.video.progress import progress_bar
from sam2_fast.video.session import ObjectTrack, Prompt, VideoSession
from sam2_fast.video.stored import as_corrected, stacked_logits
from sam2_fast.video.transactions import transact

Output = tuple[int, list[Hashable], Tensor]
"""(frame number, object ids, mask logits [N, 1, H, W] float32 at video size; above 0 is object)."""


class Tracker(FrameSteps):
    """The transitions of sessions, for one call of a predictor; arguments as of `FrameSteps`.

    has_own_output: whether `output` upsamples logits, rather than a step of the program.
    """

    has_own_output = True

    @property
    def logits_side(self) -> int:
        """Side of the model's masks, pixels."""
        return 4 * self._model.config.grid

    @property
    def non_overlap_masks(self) -> bool:
        """Whether a pixel of an output belongs to at most one object."""
        return self._model.options.non_overlap_masks

    def _stacked(self, session: VideoSession, rows: Sequence[FrameMemory | None]) -> Tensor:
        return stacked_logits(session, rows, self.logits_side)

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
        track = session.track_or_new(obj_id)
        points = track.points_with(frame, points, clear_old)
        last = track.newest_result(frame)
        hint = None
        if last is not None and last.logits is not None:
            hint = last.logits[None].to(session.device).clamp(-32.0, 32.0)
        initial = track.is_initial(frame)
        result = self._decode_points(session, track, frame, points, hint, initial)
        self._store_preview(session, obj_id, frame, Prompt(points=points), result, initial)

    def preview_mask(
        self, session: VideoSession, frame: int, obj_id: Hashable, mask: Tensor
    ) -> None:
        """Store a mask [1, 1, S, S] that a user drew as the frame's result, as a preview."""
        track = session.track_or_new(obj_id)
        initial = track.is_initial(frame)
        result = self._decode_mask(session, track, frame, mask, initial)
        self._store_preview(session, obj_id, frame, Prompt(mask=mask), result, initial)

    def commit(self, session: VideoSession) -> None:
        """Encode every preview into a memory, from the mask that the user saw.

        The frame becomes a prompted one if it was decoded without memories, if it was prompted
        before, or if `add_all_frames_to_correct_as_cond` is set. Otherwise the memory is a
        correction and replaces that of the tracked frame.
        Source: official `propagate_in_video_preflight`.
        """
        if not session.has_previews():
            return
        encoded = self._encode_previews(session)
        journal = session.journal
        keep_positions(session, (memory for _, _, memory in encoded))
        for track, frame, memory in encoded:
            bank = track.bank
            is_initial = frame in track.previews or track.paused or frame in bank.prompted
            if is_initial or self._model.options.add_all_frames_to_correct_as_cond:
                journal.set(bank.prompted, frame, memory)
                journal.pop(bank.tracked, frame)
            else:
                journal.set(bank.tracked, frame, as_corrected(session, memory))
            self._clear_around_prompt(session, track, frame)
            journal.pop(track.previews, frame)
            journal.pop(track.corrections, frame)

    def propagate(
        self,
        session: VideoSession,
        start: int | None,
        limit: int | None,
        step: int,
        progress: bool = False,
        prepare: Callable[[], object] | None = None,
        need_output: bool = True,
    ) -> Generator[Output, None, None]:
        """Commit, then track all objects frame by frame, in direction `step` (+1 or -1).

        start: the first frame; None: the first prompted one.
        limit: number of frames after the first one; None: to the end.
        prepare: what commits the prompts before the first frame; None: `commit`.
        need_output: False yields outputs without masks.
        """
        session.require_objects()
        if prepare is not None:
            prepare()
        verb = "propagate_in_video"
        first = transact(session, verb, partial(self._first_frame, session, start))
        resets = session.resets
        order = session.order(first, limit, step)
        known = order if isinstance(order, range) else range(0)
        ahead = LookAhead(session.frames, session.device, known)
        for frame in progress_bar(order, progress):
            if session.resets != resets:
                raise RuntimeError(
                    "the session was reset while it was being propagated; call "
                    "propagate_in_video again"
                )
            if not session.has_frame(frame):
                break
            if ahead.frames is not session.frames:  # the caller has assigned others
                ahead = LookAhead(session.frames, session.device, known)
            # The caller may have changed the model since the last frame: check it again.
            tracker = tracker_for(self._model, self._graphs, ahead, session)
            work = partial(tracker._pass_frame, session, frame, step, ahead, need_output)
            yield transact(session, verb, work, is_frame=True)
        transact(session, verb, lambda: None)  # waits for the checks of the last frames

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
        keep_positions(session, new_memories.values())
        rows: list[FrameMemory | None] = []
        for track, memory in pairs:
            new_memory = new_memories.get(id(track))
            rows.append(memory if new_memory is None else compact(new_memory))
            if new_memory is not None:
                session.journal.set(track.bank.tracked, frame, new_memory)
            if not track.paused:
                session.journal.set(track.passed, frame, {"reverse": step < 0})
            if frame in track.bank.prompted:
                self._clear_around_prompt(session, track, frame)
            if session.keep == "reachable":
                self._drop_unreachable(session, track, frame, step)
        return self._stacked(session, rows)

    def clear(self, session: VideoSession, obj_id: Hashable, frame: int) -> None:
        """Remove an object's prompts on a frame.

        The memory of the frame is kept, as that of a tracked frame (official rule).
        """
        track, journal = session.object(obj_id), session.journal
        for entries in (track.points, track.masks, track.previews, track.corrections):
            journal.pop(entries, frame)
        memory = journal.pop(track.bank.prompted, frame)
        if memory is not None:
            journal.set(track.bank.tracked, frame, memory)
            journal.pop(track.passed, frame)
        elif frame in track.bank.tracked:
            tracked = as_corrected(session, track.bank.tracked[frame], False)
            journal.set(track.bank.tracked, frame, tracked)

    def remove(self, session: VideoSession, obj_id: Hashable) -> list[int]:
        """Remove an object; returns the frames on which it was prompted."""
        frames = session.object(obj_id).prompts
        session.remove(obj_id)
        return frames

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
        if self.non_overlap_masks:
            masks = non_overlapping(masks)
        return frame, session.obj_ids, masks

    # steps of the transitions

    def _first_frame(self, session: VideoSession, start: int | None) -> int:
        """Commit the prompts; returns the first frame of a propagation."""
        self.commit(session)
        first = session.first_prompted() if start is None else start
        if isinstance(session.frames, StreamFrames):
            session.frames[first]  # raises IndexError if it is not stored any more
        return first

    def _pass_frame(
        self, session: VideoSession, frame: int, step: int, ahead: LookAhead, need_output: bool
    ) -> Output:
        """One frame of a propagation; new prompts are committed first."""
        self.commit(session)
        logits = self.track_frame(session, frame, step)
        self._look_ahead(frame, ahead)
        if not need_output:
            return no_output(session, frame)
        return self.output(session, frame, logits)

    def _look_ahead(self, frame: int, ahead: LookAhead) -> None:
        """Read and encode frames after `frame`, once its work is enqueued."""
        ahead.advance(frame, self._runner)

    def _add_object(self, session: VideoSession, obj_id: Hashable) -> ObjectTrack:
        return session.add(obj_id)

    def _store_preview(
        self,
        session: VideoSession,
        obj_id: Hashable,
        frame: int,
        prompt: Prompt,
        result: Result,
        is_initial: bool,
    ) -> None:
        track, journal = self._add_object(session, obj_id), session.journal
        prompt.store(track, frame, journal)
        initial = is_initial or self._model.options.add_all_frames_to_correct_as_cond
        journal.pop(track.corrections if initial else track.previews, frame)
        journal.set(track.previews if initial else track.corrections, frame, result)

    def _encode_previews(self, session: VideoSession) -> list[tuple[ObjectTrack, int, Result]]:
        """Every preview as a memory; the session is not changed."""
        pending: dict[int, list[tuple[ObjectTrack, Result]]] = defaultdict(list)
        encoded: list[tuple[ObjectTrack, int, Result]] = []
        for track in session.objects.values():
            for frame, preview in (*track.previews.items(), *track.corrections.items()):
                if has_map(preview):  # the caller has encoded it
                    encoded.append((track, frame, preview))
                else:
                    pending[frame].append((track, preview))
        for frame, items in pending.items():
            for batch in self._batches(items):
                memories = self._encode(session, frame, *zip(*batch, strict=True))
                encoded += [(t, frame, m) for (t, _), m in zip(batch, memories, strict=True)]
        return encoded

    def _clear_around_prompt(self, session: VideoSession, track: ObjectTrack, frame: int) -> None:
        """Drop tracked memories near a prompted frame if `clear_non_cond_mem_around_input`."""
        options = self._model.options
        if options.clear_non_cond_mem_around_input:
            reach = options.memory_temporal_stride_for_eval * self._model.config.num_maps
            session.journal.protect(track.bank.tracked)
            track.bank.clear_around(frame, reach)

    def _drop_unreachable(
        self, session: VideoSession, track: ObjectTrack, frame: int, step: int
    ) -> None:
        """Drop memories that no later frame can attend to."""
        limits = self._model.recall_limits
        max_map_age = (limits.num_maps - 1) * limits.stride
        max_pointer_age = limits.num_pointers - 1
        both = session.num_frames is not None
        return_starts = session.control.return_starts
        session.journal.protect(track.bank.tracked, track.passed)
        frames = session.frames
        window = frames.window if isinstance(frames, StreamFrames) else None
        track.bank.forget(frame, step, max_map_age, max_pointer_age, both, return_starts, window)
        stored = track.bank.tracked.keys() | track.bank.prompted.keys()
        for passed in track.passed.keys() - stored:
            del track.passed[passed]
        if window is not None:
            for entries in (track.points, track.masks):
                for gone in [f for f in entries.keys() - stored if frame - f >= window]:
                    session.journal.pop(entries, gone)


def tracker_for(
    model: Sam2,
    graphs: Graphs | None = None,
    ahead: LookAhead | None = None,
    session: VideoSession | None = None,
) -> Tracker:
    """A tracker for one call.

    It calls the official steps of a model that overrides some of them, or if the positions of
    memory maps in the session are not those of the model. The other arguments are those of
    `Tracker`.
    """
    if needs_official_steps(model) or not (session is None or has_own_positions(session, model)):
        from sam2_fast.video.official_tracker import OfficialTracker  # it derives from Tracker

        return OfficialTracker(model, None, ahead)
    return Tracker(model, graphs, ahead)
