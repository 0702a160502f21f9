"""The conductor: moves data between the model, which never remembers, and the memory, which never computes.

Every function computes first and changes the session last: one that raises has changed nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from sam2_fast.config import NO_OBJECT_LOGIT, Options
from sam2_fast.masks import fill_holes
from sam2_fast.model import Sam2
from sam2_fast.ops.core.transfer import upload
from sam2_fast.recording.frame import Remembered, Tracked
from sam2_fast.types import Features, FrameMemory, NoPoints, Points, Recall
from sam2_fast.video.lookahead import Ahead
from sam2_fast.video.session import ObjectTrack, Prompt, VideoSession

OBJECTS_PER_PASS = 16
"""Objects stacked in one forward pass; more are taken in several passes, so that scratch memory stays bounded."""


def frame_features(model: Sam2, session: VideoSession, frame: int, ahead: Ahead | None = None) -> Features:
    """Image features of a frame, [1, ...]; the last frame asked for is kept in the session. ahead: the pass that asks."""
    if session.features is None or session.features[0] != frame:
        session.features = (frame, (ahead or Ahead()).features(model, session, frame))
    return session.features[1]


def ambiguous(options: Options, num_points: int, first: bool) -> bool:
    """Whether three masks are wanted: decided by the number of points and whether the frame starts afresh (official rule)."""
    wanted = options.multimask_output_in_sam and (first or options.multimask_output_for_tracking)
    return wanted and options.multimask_min_pt_num <= num_points <= options.multimask_max_pt_num


def preview_points(
    model: Sam2, session: VideoSession, frame: int, obj_id: Hashable, points: Points, clear_old: bool, ahead: Ahead | None = None
) -> None:
    """Decode a click or box prompt and hold the result as a preview; the next propagation commits it.

    On a frame that propagation passed the object's memories are attended to; elsewhere it starts afresh. The last logits of
    the frame are the decoder's hint (clamped to +-32).
    """
    track = session.objects.get(obj_id, ObjectTrack())
    old = track.prompts.get(frame)
    if not clear_old and old is not None and old.points is not None:
        points = Points(torch.cat([old.points.coords, points.coords], 1), torch.cat([old.points.labels, points.labels], 1))
    features = frame_features(model, session, frame, ahead)
    first = frame not in track.passed or track.paused
    low = model.without_memory(features.low)
    if not first:
        low = attend(model, session, features, [track], [recall(model, session, track, frame, track.passed[frame])])
    shown = track.shown(frame)
    hint = None
    if shown is not None and shown.logits is not None:
        hint = shown.logits[None].to(session.device).clamp(-32.0, 32.0)
    multimask = ambiguous(model.options, points.labels.shape[1], first)
    logits, pointer, presence = model.track(low, features, points, hint, multimask)
    preview = remember(model, session, logits, pointer, presence)[0]
    _hold(session, obj_id, frame, Prompt(points=points), preview)


def preview_mask(model: Sam2, session: VideoSession, frame: int, obj_id: Hashable, mask: Tensor, ahead: Ahead | None = None) -> None:
    """Take a mask [1, 1, S, S] that the user drew as the frame's result and hold it as a preview."""
    features = frame_features(model, session, frame, ahead)
    preview = remember(model, session, *model.point_to(features, mask))[0]
    _hold(session, obj_id, frame, Prompt(mask=mask), preview)


def _hold(session: VideoSession, obj_id: Hashable, frame: int, prompt: Prompt, preview: FrameMemory) -> None:
    track = session.objects.setdefault(obj_id, ObjectTrack())
    track.prompts[frame] = prompt
    track.previews[frame] = preview


def commit(model: Sam2, session: VideoSession, ahead: Ahead | None = None) -> None:
    """Turn every preview into a memory, encoded from what the user saw (official `propagate_in_video_preflight`).

    A preview becomes prompted where the object starts afresh, was prompted before, or `add_all_frames_to_correct_as_cond` is
    set; a correction of a tracked frame replaces that frame's memory.
    """
    pending: dict[int, list[tuple[ObjectTrack, FrameMemory]]] = defaultdict(list)
    for track in session.objects.values():
        for frame, preview in track.previews.items():
            pending[frame].append((track, preview))
    encoded: list[tuple[ObjectTrack, int, FrameMemory]] = []
    for frame, items in pending.items():
        features = frame_features(model, session, frame, ahead)
        for part in _parts(items):
            previews = [preview for _, preview in part]
            maps = encode(model, session, features, previews, model.options.binarize_mask_from_pts_for_mem_enc)
            encoded += [(track, frame, replace(p, map=m)) for (track, p), m in zip(part, maps, strict=True)]
    reach = model.options.memory_temporal_stride_for_eval * model.config.num_maps
    for track, frame, memory in encoded:
        afresh = frame not in track.passed or track.paused or frame in track.bank.prompted
        if afresh or model.options.add_all_frames_to_correct_as_cond:
            track.bank.prompted[frame] = memory
            track.bank.tracked.pop(frame, None)
            track.bank.corrected.discard(frame)
        else:
            track.bank.tracked[frame] = memory
            track.bank.corrected.add(frame)
        if model.options.clear_non_cond_mem_around_input:
            track.bank.clear_around(frame, reach)
        del track.previews[frame]


def track_frame(model: Sam2, session: VideoSession, frame: int, step: int, ahead: Ahead | None = None) -> Tensor:
    """Results of all objects on one frame: logits [N, 1, 4h, 4w] float32, in the order of `session.objects`.

    Prompted and corrected frames are shown as they are; other objects attend to their memories, all of them stacked, and
    remember the result. Paused objects are absent. ahead: the pass that the frame belongs to. The frame is stored for all objects or,
    if anything raises, for none.
    """
    tracks = list(session.objects.values())
    settled = [track.bank.settled(frame) for track in tracks]
    moving = [t for t, done in zip(tracks, settled, strict=True) if done is None and not t.paused]
    features = frame_features(model, session, frame, ahead) if moving else None
    fresh: dict[int, FrameMemory] = {}
    for part in _parts(moving):
        assert features is not None
        for track, memory in zip(part, _track_part(model, session, features, part, frame, step, ahead), strict=True):
            fresh[id(track)] = memory
    rows = [(fresh.get(id(t)) or done) for t, done in zip(tracks, settled, strict=True)]
    for track in moving:
        track.bank.tracked[frame] = fresh[id(track)]
    for track in tracks:
        if not track.paused:
            track.passed[frame] = step
        if model.options.clear_non_cond_mem_around_input and frame in track.bank.prompted:
            track.bank.clear_around(frame, model.options.memory_temporal_stride_for_eval * model.config.num_maps)
        if session.keep == "reachable":
            _forget(model, session, track, frame, step)
    return stack_logits(model, session, rows)


def _track_part(
    model: Sam2,
    session: VideoSession,
    features: Features,
    tracks: Sequence[ObjectTrack],
    frame: int,
    step: int,
    ahead: Ahead | None,
) -> list[FrameMemory]:
    given = remembered(session, tracks, [recall(model, session, t, frame, step) for t in tracks])
    multimask = ambiguous(model.options, 0, first=False)
    eager = partial(_track_eagerly, model, features, given, multimask)
    recording = ahead.recording(model) if ahead else None
    if recording is not None:
        graphs, checked = recording
        graphs.compile_ahead("track", features.low, eager)
        if graphs.refuses_frame(model, features.low) is None:
            return remember(model, session, *graphs.track(model, features, given, multimask, eager, checked))
    return remember(model, session, *eager())


def _track_eagerly(model: Sam2, features: Features, given: Remembered, multimask: bool) -> Tracked:
    """Attend, decode and encode the memory of the N objects of `given` without a recording."""
    fused, nothing = _attend(model, features, given), NoPoints(len(given.maps))
    logits, pointer, presence = model.track(fused, features, nothing, None, multimask)
    maps = model.encode_memory(features.low, logits, presence, False)  # from the mask before its holes are filled
    return Tracked(logits, pointer, presence, maps)


def recall(model: Sam2, session: VideoSession, track: ObjectTrack, frame: int, step: int) -> Recall:
    """Which memories of `track` frame `frame` attends to."""
    options = model.options
    return track.bank.recall(
        frame,
        step,
        session.num_frames,
        model.config.num_maps,
        options.max_obj_ptrs_in_encoder,
        options.memory_temporal_stride_for_eval,
        options.max_cond_frames_in_attn,
    )


def attend(model: Sam2, session: VideoSession, features: Features, tracks: Sequence[ObjectTrack], recalls: Sequence[Recall]) -> Tensor:
    """Fused features [N, 256, h, w] of N objects, which may remember differently much."""
    return _attend(model, features, remembered(session, tracks, recalls))


def remembered(session: VideoSession, tracks: Sequence[ObjectTrack], recalls: Sequence[Recall]) -> Remembered:
    """What `recalls` name, on the compute device."""
    maps = [[upload(_map(track, f), session.device) for f in r.maps] for track, r in zip(tracks, recalls, strict=True)]
    pointers = [[upload(_pointer(track, f), session.device) for f in r.pointers] for track, r in zip(tracks, recalls, strict=True)]
    return Remembered(maps, [r.rows for r in recalls], pointers, [r.ages for r in recalls], recalls[0].longest)


def _attend(model: Sam2, features: Features, given: Remembered) -> Tensor:
    nothing = features.low.new_zeros(0, model.config.hidden_dim)
    pointers = [torch.stack(list(mine)) if mine else nothing for mine in given.pointers]
    return model.attend(features.low, given.maps, given.rows, pointers, given.ages, given.longest)


def _map(track: ObjectTrack, frame: int) -> Tensor:
    memory = _remembered(track, frame)
    assert memory.map is not None
    return memory.map


def _pointer(track: ObjectTrack, frame: int) -> Tensor:
    return _remembered(track, frame).pointer


def _remembered(track: ObjectTrack, frame: int) -> FrameMemory:
    memory = track.bank.get(frame)
    assert memory is not None
    return memory


def encode(model: Sam2, session: VideoSession, features: Features, previews: Sequence[FrameMemory], binarize: bool) -> Tensor:
    """Memory maps [N, h * w, 64] of masks that users accepted, from their stored low-resolution logits."""
    logits = torch.stack([p.logits for p in previews if p.logits is not None]).to(session.device)
    presence = torch.stack([p.presence for p in previews]).to(session.device)
    return model.encode_memory(features.low, logits, presence, binarize).to(session.storage)


def remember(
    model: Sam2, session: VideoSession, logits: Tensor, pointer: Tensor, presence: Tensor, maps: Tensor | None = None
) -> list[FrameMemory]:
    """One memory per object, its mask with small holes filled, moved to where the session stores its state."""
    if model.options.fill_hole_area > 0:
        logits = fill_holes(logits, model.options.fill_hole_area)
    logits = logits.to(session.storage)
    kept = [None] * logits.shape[0] if maps is None else maps.to(session.storage).unbind()
    return [FrameMemory(p, s, m, x) for p, s, m, x in zip(pointer.unbind(), presence.unbind(), kept, logits.unbind(), strict=True)]


def stack_logits(model: Sam2, session: VideoSession, rows: Sequence[FrameMemory | None]) -> Tensor:
    """[N, 1, 4h, 4w] float32 on the compute device; an object without a result is absent (-1024)."""
    side, device = 4 * model.config.grid, session.device
    if not rows:
        return torch.zeros(0, 1, side, side, device=device)
    known = [row.logits for row in rows if row is not None and row.logits is not None]
    if len(known) == len(rows):
        return torch.stack([logits.to(device) for logits in known])
    absent = torch.full((1, side, side), NO_OBJECT_LOGIT, device=device)
    return torch.stack([absent if row is None or row.logits is None else row.logits.to(device) for row in rows])


def _parts(items: Sequence) -> list[Sequence]:
    return [items[i : i + OBJECTS_PER_PASS] for i in range(0, len(items), OBJECTS_PER_PASS)]


def _forget(model: Sam2, session: VideoSession, track: ObjectTrack, frame: int, step: int) -> None:
    options = model.options
    maps, pointers = (model.config.num_maps - 1) * options.memory_temporal_stride_for_eval, options.max_obj_ptrs_in_encoder - 1
    track.bank.forget(frame, step, maps, pointers, both=session.num_frames is not None)
    track.passed = {f: s for f, s in track.passed.items() if f in track.bank.tracked or f in track.bank.prompted}
