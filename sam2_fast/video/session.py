"""The state of a video that is segmented: frames, objects, and the memories of each object.

The state is a dictionary of the official layout, which callers may change; `VideoSession` reads it
anew in every call. It computes nothing; the tracker does.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal

import torch
from torch import Tensor

from sam2_fast.memory import FrameMemory, MemoryBank, compact
from sam2_fast.model import Sam2
from sam2_fast.official.predictor_steps import KINDS, PER_OBJECT, State, add_object, appended
from sam2_fast.ops.core.exclusive import Exclusive
from sam2_fast.types import Points
from sam2_fast.video.frames import AssignedFrames, FrameImages, Frames
from sam2_fast.video.journal import Journal

Keep = Literal["all", "reachable"]


@dataclass(frozen=True)
class Prompt:
    """The user's prompt for one object on one frame: points or a mask.

    points: a box is two of them. mask: [1, 1, S, S].
    """

    points: Points | None = None
    mask: Tensor | None = None

    def store(self, track: ObjectTrack, frame: int, journal: Journal) -> None:
        """Replace the prompt of a frame."""
        journal.protect(track.points, track.masks)
        if self.points is not None:
            coords, labels = self.points.coords, self.points.labels
            track.points[frame] = {"point_coords": coords, "point_labels": labels}
            track.masks.pop(frame, None)
        if self.mask is not None:
            track.masks[frame] = self.mask
            track.points.pop(frame, None)


@dataclass
class ObjectTrack:
    """One object: prompts, previews that are not committed yet, memories, and passed frames.

    Every field but `bank` and `obj_id` is one of the dictionaries of the state, by frame number.

    points: {"point_coords": [1, P, 2] in pixels of the S x S image, "point_labels": [1, P]}.
    masks: [1, 1, S, S].
    previews: results of prompts that were decoded without memories; corrections: with them.
    passed: frames that propagation has tracked -> {"reverse": whether backwards}. A prompt on one
        of them is decoded with the object's memories, a prompt on another frame without them.
    """

    points: dict[int, Any] = field(default_factory=dict)
    masks: dict[int, Tensor] = field(default_factory=dict)
    previews: dict[int, Any] = field(default_factory=dict)
    corrections: dict[int, Any] = field(default_factory=dict)
    bank: MemoryBank = field(default_factory=MemoryBank)
    passed: dict[int, dict[str, bool]] = field(default_factory=dict)
    obj_id: Hashable = None

    @property
    def prompts(self) -> list[int]:
        """The frames with a prompt."""
        return list({**self.points, **self.masks})

    def newest_output(self, frame: int) -> Mapping[str, Any] | None:
        """What is stored as the newest result for a frame: a preview, a memory, or None."""
        for outputs in (self.previews, self.corrections):
            if frame in outputs:
                output: Mapping[str, Any] = outputs[frame]
                return output
        return self.bank.output(frame)

    def newest_result(self, frame: int) -> FrameMemory | None:
        """The newest result for a frame, or None."""
        output = self.newest_output(frame)
        return None if output is None else compact(output)

    def points_with(self, frame: int, points: Points, clear_old: bool) -> Points:
        """The earlier points of the frame, unless they are cleared, then `points`."""
        old = None if clear_old else self.points.get(frame)
        inputs = appended(old, points.coords, points.labels)
        return Points(inputs["point_coords"], inputs["point_labels"])

    def direction(self, frame: int) -> int:
        """The direction in which a frame was tracked, +1 or -1; +1 if it was not."""
        passed = self.passed.get(frame)
        return -1 if passed is not None and passed["reverse"] else 1

    def is_initial(self, frame: int) -> bool:
        """Whether a prompt on this frame is decoded without memories."""
        return frame not in self.passed or self.paused

    @property
    def paused(self) -> bool:
        """Whether the object has no prompted frame, and so cannot be tracked."""
        return not self.bank.prompted


class Control:
    """What calls on the same state share, besides the state: a guard, and the number of resets.

    journal: of the call that is running.
    unchecked: journals of frames with results that a GPU still checks, the oldest first.

    A copy of a state has a control of its own.
    """

    def __init__(self, keep: Keep = "all") -> None:
        self.keep = keep
        self.resets = 0
        # Frames from which a pass in the other direction will start, so that the memories near them
        # are kept.
        self.return_starts: set[int] = set()
        self.calls = Exclusive("session")
        self.journal: Journal | None = None
        self.unchecked: list[Journal] = []
        # The positions of memory maps that were last compared with those of a model, and the model.
        self.own_position: Tensor | None = None
        self.position_model: Callable[[], Sam2 | None] = lambda: None

    def __reduce__(self) -> tuple[Any, ...]:
        return Control, (self.keep,)


class VideoSession:
    """State of one video.

    keep: "all" stores the memories of every frame, so that any frame can be corrected (1.3 MB for
        each object and frame, in float32 at 1024 pixels); "reachable" stores only those that later
        frames can attend to, so that memory does not grow with the video.
    """

    def __init__(self, state: State, control: Control) -> None:
        self._state: State | None = state
        self.control = control
        self._assigned: AssignedFrames | None = None

    def __repr__(self) -> str:
        """One line: frames and their size, objects, and the prompted frames."""
        count = "a stream" if self.num_frames is None else f"{self.num_frames} frames"
        height, width = self.size
        prompts = (self.state[name].values() for name in PER_OBJECT[:2])
        prompted = sorted({frame for entries in prompts for entry in entries for frame in entry})
        name = type(self).__name__
        return (
            f"{name}({count} of {width} x {height}, objects {self.obj_ids}, "
            f"prompted on {prompted}, keep={self.keep!r}, {self.device})"
        )

    @property
    def state(self) -> State:
        """The dictionary of the official layout."""
        assert self._state is not None
        return self._state

    @property
    def keep(self) -> Keep:
        """Which memories are stored."""
        return self.control.keep

    @property
    def resets(self) -> int:
        """How often the session was reset."""
        return self.control.resets

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        device: torch.device = self.state["device"]
        return device

    @property
    def storage(self) -> torch.device:
        """The device of memories."""
        device: torch.device = self.state["storage_device"]
        return device

    @property
    def frames(self) -> Frames:
        """The source of the frames."""
        images = self.state["images"]
        if isinstance(images, FrameImages) and not images.replaced:
            return images.source
        if self._assigned is None or self._assigned.images is not images:
            self._assigned = AssignedFrames(images, *self.size)
        return self._assigned

    @property
    def num_frames(self) -> int | None:
        """Number of frames of the video, or None for a stream."""
        number: int | None = self.state["num_frames"]
        return self.frames.num_frames if number is None else number

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the video, pixels."""
        return self.state["video_height"], self.state["video_width"]

    @property
    def obj_ids(self) -> list[Hashable]:
        """Ids of the objects, in the order of the masks that every call returns."""
        return list(self.state["obj_ids"])

    @property
    def objects(self) -> dict[Hashable, ObjectTrack]:
        """The objects by id, in the order in which they were added.

        Raises ValueError if the caller has changed ids or indices so that they do not match.
        """
        indices, ids = self.state["obj_id_to_idx"], self.state["obj_ids"]
        if len(ids) != len(indices) or sorted(indices.values()) != list(range(len(indices))):
            raise ValueError(
                f"inference_state: expected 'obj_ids' and 'obj_id_to_idx' of the same objects, "
                f"with indices from 0, got {list(ids)} and {dict(indices)}"
            )
        return {i: self._track(indices[i]) for i in sorted(indices, key=indices.__getitem__)}

    @property
    def journal(self) -> Journal:
        """Where the running call records what it changes."""
        return self.control.journal or Journal()

    def protect(self) -> None:
        """Record the whole state in the journal, before a step of the program may change it."""
        state = self.state
        self.journal.protect(state, state["constants"], state["obj_ids"])
        self.journal.protect(state["obj_id_to_idx"], state["obj_idx_to_id"])
        for name in PER_OBJECT:
            self.journal.protect(state[name], *state[name].values())
            if "output_dict" in name:
                for outputs in state[name].values():
                    self.journal.protect(*outputs.values())

    def object(self, obj_id: Hashable) -> ObjectTrack:
        """The track of an object. Raises ValueError, with the existing ids, for an unknown id."""
        indices = self.state["obj_id_to_idx"]
        if obj_id not in indices:
            raise ValueError(f"obj_id: {obj_id!r} is unknown; existing ids: {self.obj_ids}")
        return self._track(indices[obj_id])

    def track_or_new(self, obj_id: Hashable) -> ObjectTrack:
        """The track of an object; for an unknown id an empty one, which is not stored."""
        index = self.state["obj_id_to_idx"].get(obj_id)
        return ObjectTrack(obj_id=obj_id) if index is None else self._track(index)

    def require_objects(self) -> None:
        """Raise RuntimeError, with the official message, if there is no object."""
        if not self.state["obj_id_to_idx"]:
            raise RuntimeError(
                "No input points or masks are provided for any object; please add inputs first."
            )

    def first_prompted(self) -> int:
        """The first frame with a committed prompt. Raises RuntimeError if there is none."""
        prompted = [frame for track in self.objects.values() for frame in track.bank.prompted]
        if not prompted:
            raise RuntimeError("no object has a prompt: add points, a box or a mask first")
        return min(prompted)

    def order(self, start: int, limit: int | None, step: int) -> Iterable[int]:
        """The frames of a propagation, in order; endless if the number of frames is unknown.

        limit: number of frames after the first one; None: to the end. step: +1 or -1.
        """
        if step < 0:
            last = -1 if limit is None else max(start - limit, 0) - 1
            return range(start, last, -1) if start > 0 else range(0)
        if self.num_frames is None:
            return count(start) if limit is None else range(start, start + limit + 1)
        end = self.num_frames if limit is None else min(start + limit + 1, self.num_frames)
        return range(start, end)

    def has_frame(self, frame: int) -> bool:
        """Whether the frame exists; if the length of the source is unknown, the frame is read."""
        if self.num_frames is not None:
            return True
        try:
            self.frames[frame]
        except IndexError:
            self.state["num_frames"] = self.frames.num_frames
            return False
        return True

    def add(self, obj_id: Hashable) -> ObjectTrack:
        """The track of an object, which is new if its id is unknown.

        Source: official `_obj_id_to_idx`.
        """
        state = self.state
        self.journal.protect(state, state["obj_id_to_idx"], state["obj_idx_to_id"])
        self.journal.protect(*(state[name] for name in PER_OBJECT))
        return self._track(add_object(self.state, obj_id))

    def remove(self, obj_id: Hashable) -> None:
        """Remove an object; the indices of later ones decrease.

        Source: official `remove_object`.
        """
        self.protect()
        state = self.state
        index = state["obj_id_to_idx"][obj_id]
        ids = [other for other in self.objects if other != obj_id]
        for name in PER_OBJECT:
            entries = [entry for i, entry in sorted(state[name].items()) if i != index]
            state[name].clear()
            state[name].update(enumerate(entries))
        state["obj_id_to_idx"] = {other: i for i, other in enumerate(ids)}
        state["obj_idx_to_id"] = dict(enumerate(ids))
        state["obj_ids"] = ids

    def reset(self) -> None:
        """Remove all objects; running propagations end with an error."""
        self.protect()
        for name in (*PER_OBJECT, "obj_id_to_idx", "obj_idx_to_id", "obj_ids"):
            self.state[name].clear()
        self.journal.assign(self.control, resets=self.control.resets + 1)

    def has_previews(self) -> bool:
        """Whether a prompt is not committed yet."""
        stored = self.state["temp_output_dict_per_obj"].values()
        return any(outputs[kind] for outputs in stored for kind in KINDS)

    def _track(self, index: int) -> ObjectTrack:
        """The object with this index."""
        state = self.state
        outputs = state["output_dict_per_obj"][index]
        previews = state["temp_output_dict_per_obj"][index]
        return ObjectTrack(
            state["point_inputs_per_obj"][index],
            state["mask_inputs_per_obj"][index],
            previews[KINDS[0]],
            previews[KINDS[1]],
            MemoryBank(outputs[KINDS[0]], outputs[KINDS[1]]),
            state["frames_tracked_per_obj"][index],
            state["obj_idx_to_id"][index],
        )
