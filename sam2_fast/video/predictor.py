"""`SAM2VideoPredictor`: the official methods on a `VideoSession`, and `step` for streams."""

from __future__ import annotations

from abc import ABCMeta
from collections.abc import Generator, Hashable, Iterator, Sequence
from dataclasses import fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sam2_fast.config import (
    FIXED_SETTINGS,
    VERSION_SETTINGS,
    VIDEO_POSTPROCESSING,
    Options,
)
from sam2_fast.io.video import open_video
from sam2_fast.model.layers import WithTables
from sam2_fast.official.construction import VIDEO_SETTINGS
from sam2_fast.official.predictor_steps import PredictorSteps, State
from sam2_fast.prompts import to_model_mask, to_model_points
from sam2_fast.recording.cache import Graphs
from sam2_fast.video.arguments import frame_number, object_id
from sam2_fast.video.frames import Frames, StreamFrames, own_pixels
from sam2_fast.video.full_size import frame_masks, no_output
from sam2_fast.video.inference_state import InferenceState, new_state, session_of
from sam2_fast.video.program_frames import frames_of_program
from sam2_fast.video.session import Keep, VideoSession
from sam2_fast.video.tracker import Output, Tracker, tracker_for
from sam2_fast.video.transactions import transaction
from sam2_fast.weights.build import build_pretrained, warn_of_unknown


class _ShortHelp(ABCMeta):
    """Metaclass: `dir` and `help` of the class list only what this library adds.

    The members of `torch.nn.Module` (1,100 lines of help), the options, which `Options` documents,
    and settings that cannot be changed are left out of the list. They work as usual. It derives
    from ABCMeta so that a subclass can also inherit from abstract classes.
    """

    def __dir__(cls) -> list[str]:
        added = {
            name
            for kind in cls.__mro__
            if kind not in (nn.Module, WithTables, object)
            for name in vars(kind)
        }
        options = {option.name for option in fields(Options)}
        return sorted(added - options - {*FIXED_SETTINGS, *VERSION_SETTINGS})


class SAM2VideoPredictor(PredictorSteps, metaclass=_ShortHelp):
    """Interactive video segmentation (official `SAM2VideoPredictor`).

    Every video has a session. A call validates, computes, then commits: if it raises, it has
    changed nothing.
    graphs: CUDA graphs of frames, used if the model is on a GPU; set it to None to use none.
    """

    postprocessing = VIDEO_POSTPROCESSING

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        """The arguments of `SAM2Base`, and by keyword those of `config.VIDEO_SETTINGS`."""
        own = {name: keywords.pop(name) for name in VIDEO_SETTINGS if name in keywords}
        super().__init__(*arguments, **keywords)
        self.options = self.options.updated(**own)
        self.graphs: Graphs | None = Graphs()

    @classmethod
    def from_pretrained(cls, model_id: str, **kwargs: Any) -> SAM2VideoPredictor:
        """A predictor from the Hub or a path; arguments of `build_sam2_video_predictor`."""
        warn_of_unknown(kwargs)
        return build_pretrained(cls, model_id, kwargs)

    @torch.inference_mode()
    def init_state(
        self,
        video_path: Any = None,
        offload_video_to_cpu: bool = False,
        offload_state_to_cpu: bool = False,
        async_loading_frames: bool = False,
        *,
        keep: Keep | None = None,
        max_pixels: int | None = None,
        max_frames: int | None = None,
    ) -> InferenceState:
        """Open a video or a stream.

        video_path: a folder of numbered images, a video file or its bytes, an array or tensor of
            frames, an iterator, or a camera number; None: a stream, with frames passed to `step`.
        offload_video_to_cpu: `state["images"]` returns frames on the host.
        offload_state_to_cpu: store memories in host memory.
        async_loading_frames: passed to a loader of the program; frames are always read lazily.
        keep: "all" (default if the length is known) stores the memories of every frame; "reachable"
            (default for streams) only those that later frames attend to, in bounded memory.
        max_pixels, max_frames: limits on the input; None: the defaults of `io.video.open_video`.
        """
        arguments = {"max_pixels": max_pixels, "max_frames": max_frames}
        limits: dict[str, Any] = {
            name: value for name, value in arguments.items() if value is not None
        }
        if keep not in (None, "all", "reachable"):
            raise ValueError(f"keep: expected 'all', 'reachable' or None, got {keep!r}")
        frames: Frames = StreamFrames()
        if video_path is not None:
            frames = frames_of_program(
                video_path,
                self.config.image_size,
                offload_video_to_cpu,
                async_loading_frames,
                self.device,
            ) or open_video(video_path, **limits)
        storage = torch.device("cpu") if offload_state_to_cpu else self.device
        default: Keep = "reachable" if frames.num_frames is None else "all"
        size = self.config.image_size
        state = new_state(frames, size, self.device, storage, keep or default, offload_video_to_cpu)
        if video_path is not None:
            self._tracker(state).open(state)
        return state

    @transaction
    def add_new_points_or_box(
        self,
        inference_state: VideoSession | State,
        frame_idx: int,
        obj_id: Hashable,
        points: Any = None,
        labels: Any = None,
        clear_old_points: bool = True,
        normalize_coords: bool = True,
        box: Any = None,
        *,
        need_output: bool = True,
    ) -> Output:
        """Prompt one object with clicks or a box on one frame; a new id adds an object.

        points: [P, 2] (x, y). labels: [P], 1 object, 0 background. box: (x0, y0, x1, y1).
        Coordinates are video pixels, or fractions of the frame if normalize_coords is False.
        clear_old_points: False adds the clicks to earlier ones. need_output: False: no masks.
        Raises ValueError, TypeError or IndexError for an invalid prompt.
        """
        session = session_of(inference_state)
        frame = self._frame(session, frame_idx)
        if box is not None and not clear_old_points:
            raise ValueError(
                "box: a box comes before any click, so it cannot be added to earlier ones; "
                "use clear_old_points=True"
            )
        height, width = session.size
        prompt = to_model_points(
            points,
            labels,
            box,
            width,
            height,
            self.config.image_size,
            normalize_coords,
            session.device,
            self.strict_prompts,
        )
        tracker = self._tracker(session)
        tracker.preview_points(session, frame, object_id(obj_id), prompt, clear_old_points)
        return self._newest(tracker, session, frame, need_output)

    def add_new_points(self, *args: Any, **kwargs: Any) -> Output:
        """An older name of `add_new_points_or_box`."""
        return self.add_new_points_or_box(*args, **kwargs)

    @transaction
    def add_new_mask(
        self,
        inference_state: VideoSession | State,
        frame_idx: int,
        obj_id: Hashable,
        mask: Any,
        *,
        need_output: bool = True,
    ) -> Output:
        """Prompt one object with a mask on one frame.

        mask: [H, W] of any size; object is what is not 0, or 0.5 and more in a float tensor.
        """
        session = session_of(inference_state)
        frame = self._frame(session, frame_idx)
        drawn = to_model_mask(mask, self.config.image_size, session.device)
        tracker = self._tracker(session)
        tracker.preview_mask(session, frame, object_id(obj_id), drawn)
        return self._newest(tracker, session, frame, need_output)

    @transaction
    def propagate_in_video_preflight(self, inference_state: VideoSession | State) -> None:
        """Commit all prompts to memory; `propagate_in_video` and `step` also do this."""
        session = session_of(inference_state)
        session.require_objects()
        self._tracker(session).commit(session)

    def propagate_in_video(
        self,
        inference_state: VideoSession | State,
        start_frame_idx: int | None = None,
        max_frame_num_to_track: int | None = None,
        reverse: bool = False,
        *,
        progress: bool = False,
        need_output: bool = True,
    ) -> Generator[Output, None, None]:
        """Track all objects and yield (frame, ids, masks), frame by frame.

        start_frame_idx: None: the first prompted frame.
        max_frame_num_to_track: N yields N + 1 frames, as upstream; None: to the end.
        reverse: track backwards; from frame 0 this yields nothing, as upstream.
        need_output: False yields masks [0, 1, H, W]; `frame_masks` returns them one by one.
        The session may be changed between two frames: added or removed objects and new prompts take
        effect from the next frame; a reset ends the loop with RuntimeError.
        """
        session = session_of(inference_state)
        session.require_objects()
        if start_frame_idx is not None:
            start_frame_idx = self._frame(session, start_frame_idx, "start_frame_idx")
        if max_frame_num_to_track is not None and max_frame_num_to_track < 0:
            raise ValueError(
                f"max_frame_num_to_track: expected 0 or more, got {max_frame_num_to_track}"
            )
        prepare = partial(self.propagate_in_video_preflight, inference_state)
        return self._tracker(session).propagate(
            session,
            start_frame_idx,
            max_frame_num_to_track,
            step=-1 if reverse else 1,
            progress=progress,
            prepare=prepare,
            need_output=need_output,
        )

    def propagate_in_both_directions(
        self,
        inference_state: VideoSession | State,
        start_frame_idx: int | None = None,
        *,
        max_frame_num_to_track: int | None = None,
        need_output: bool = True,
    ) -> Iterator[Output]:
        """`propagate_in_video` to the end, then back; the start frame comes once."""
        session = session_of(inference_state)
        self.propagate_in_video_preflight(inference_state)
        start = session.first_prompted() if start_frame_idx is None else start_frame_idx
        propagate = partial(
            self.propagate_in_video,
            inference_state,
            start,
            max_frame_num_to_track,
            need_output=need_output,
        )
        return_starts = session.control.return_starts
        is_new = start not in return_starts
        return_starts.add(start)
        try:
            yield from propagate()
            yield from (output for output in propagate(reverse=True) if output[0] != start)
        finally:
            if is_new:
                return_starts.discard(start)

    @transaction
    def frame_masks(
        self,
        inference_state: VideoSession | State,
        frame_idx: int,
        obj_ids: Sequence[Hashable] | None = None,
    ) -> Iterator[tuple[Hashable, Tensor]]:
        """The newest (id, mask [H, W] bool) of objects (None: all); few are in memory at once."""
        session = session_of(inference_state)
        frame = self._frame(session, frame_idx)
        ids = session.obj_ids if obj_ids is None else [object_id(i, "obj_ids") for i in obj_ids]
        return frame_masks(self._tracker(session), session, frame, ids)

    @transaction
    def step(
        self, inference_state: VideoSession | State, frame: Any, *, need_output: bool = True
    ) -> Output:
        """Commit all prompts, then track all objects on the next frame of `init_state(None)`.

        frame: an RGB image of any kind that `set_image` accepts; all frames have the same size.
        Without objects, the masks are [0, 1, H, W]. The last few frames can be prompted.
        """
        session = session_of(inference_state)
        frames = session.frames
        if not isinstance(frames, StreamFrames):
            raise TypeError(
                "step: this session was opened with a video; open a stream with init_state(None)"
            )
        pixels = own_pixels(frame)
        frames.check(pixels)
        tracker = self._tracker(session)
        tracker.commit(session)
        number = frames.push(pixels, session.journal)
        for key, value in (("video_height", frames.height), ("video_width", frames.width)):
            session.journal.set(session.state, key, value)
        logits = tracker.track_frame(session, number, 1)
        if not need_output:
            return no_output(session, number)
        return tracker.output(session, number, logits)

    @transaction
    def clear_all_prompts_in_frame(
        self,
        inference_state: VideoSession | State,
        frame_idx: int,
        obj_id: Hashable,
        need_output: bool = True,
    ) -> Output | None:
        """Remove one object's prompts on one frame; an object without any prompt is paused."""
        session = session_of(inference_state)
        frame = self._frame(session, frame_idx)
        tracker = self._tracker(session)
        tracker.clear(session, object_id(obj_id), frame)
        return tracker.newest_output(session, frame) if need_output else None

    @transaction
    def remove_object(
        self,
        inference_state: VideoSession | State,
        obj_id: Hashable,
        strict: bool = False,
        need_output: bool = True,
    ) -> tuple[list[Hashable], list[tuple[int, Tensor]]]:
        """Remove an object; an unknown id is ignored, or raises RuntimeError if strict is True.

        Returns the remaining ids, and their masks on the frames on which the object was prompted.
        """
        session = session_of(inference_state)
        obj_id = object_id(obj_id)
        if obj_id not in session.obj_ids:
            if strict:
                raise RuntimeError(
                    f"Cannot remove object id {obj_id} as it doesn't exist. All existing "
                    f"object ids: {session.obj_ids}."
                )
            return session.obj_ids, []
        tracker = self._tracker(session)
        frames = tracker.remove(session, obj_id)
        updated: list[tuple[int, Tensor]] = []
        if need_output and session.obj_ids:
            updated = [(frame, tracker.newest_output(session, frame)[2]) for frame in frames]
        return session.obj_ids, updated

    @transaction
    def reset_state(self, inference_state: VideoSession | State) -> None:
        """Remove all objects; the video stays open. A running propagation ends with an error."""
        session = session_of(inference_state)
        session.protect()
        self._reset_tracking_results(session.state)
        session.reset()

    def _newest(
        self, tracker: Tracker, session: VideoSession, frame: int, need_output: bool
    ) -> Output:
        if need_output:
            return tracker.newest_output(session, frame)
        return no_output(session, frame)

    def _frame(self, session: VideoSession, frame_idx: Any, name: str = "frame_idx") -> int:
        frames = session.frames
        count = frames.pushed if isinstance(frames, StreamFrames) else session.num_frames
        return frame_number(frame_idx, count, name)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *object.__dir__(self)})

    def _tracker(self, session: VideoSession) -> Tracker:
        return tracker_for(self, self.graphs, session=session)


class SAM2VideoPredictorVOS(SAM2VideoPredictor):
    """The official name of the compiled predictor; here it behaves like its base class."""
