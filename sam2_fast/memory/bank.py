"""The memories of one object: data and rules on integers, without computation on tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from sam2_fast.memory.frame_memory import FrameMemory, compact, has_map, is_corrected
from sam2_fast.types import Recall

Outputs = dict[int, Any]
"""Frame number -> output: a `FrameMemory`, or a dictionary of the official keys."""


@dataclass
class MemoryBank:
    """Memories of one object, by frame number.

    prompted: frames with a prompt; kept as long as the prompt exists.
    tracked: other frames that propagation has passed. Those that the user has corrected are kept by
        a later propagation.
    """

    prompted: Outputs = field(default_factory=dict)
    tracked: Outputs = field(default_factory=dict)

    def output(self, frame: int) -> Mapping[str, Any] | None:
        """What is stored for a prompted or tracked frame, or None."""
        output: Mapping[str, Any] | None = self.prompted.get(frame)
        return self.tracked.get(frame) if output is None else output

    def get(self, frame: int) -> FrameMemory | None:
        """The memory of a prompted or tracked frame, or None."""
        output = self.prompted.get(frame)
        if output is None:
            output = self.tracked.get(frame)
        return output if output is None or type(output) is FrameMemory else compact(output)

    def map(self, frame: int) -> Tensor:
        """The memory map of a frame, [h * w, 64]. Raises KeyError if there is none."""
        memory = self.get(frame)
        if memory is None or memory.map is None:
            raise KeyError(f"frame {frame} has no memory map")
        return memory.map

    def pointer(self, frame: int) -> Tensor:
        """The object pointer of a frame, [256]. Raises KeyError if there is none."""
        memory = self.get(frame)
        if memory is None:
            raise KeyError(f"frame {frame} has no memory")
        return memory.pointer

    def settled(self, frame: int) -> FrameMemory | None:
        """The memory of a frame that propagation must not track again, or None.

        These are prompted and corrected frames.
        """
        output = self.prompted.get(frame)
        if output is None:
            output = self.tracked.get(frame)
            if output is None or not is_corrected(output):
                return None
        return compact(output)

    def recall(
        self,
        now: int,
        step: int,
        num_frames: int | None,
        num_maps: int = 7,
        num_pointers: int = 16,
        stride: int = 1,
        max_prompted: int = -1,
        past_pointers_only: bool = True,
        use_pointers: bool = True,
    ) -> Recall:
        """Which memories frame `now` attends to when tracking in direction `step` (+1 or -1).

        They are the maps of all prompted frames (at most the `max_prompted` nearest ones), the
        `num_maps - 1` tracked maps before `now` (every `stride`-th), the pointers of prompted
        frames up to `now` in this direction, and up to `num_pointers - 1` recent pointers.
        num_frames: of the video, or None if unknown; it limits the number of pointers.
        past_pointers_only: False adds the pointers of prompted frames after `now`, too.
        use_pointers: False: maps only.
        Source: official `_prepare_memory_conditioned_features`.
        """
        near = nearest_frames(list(self.prompted), now, max_prompted)
        attended = set(near)

        def candidate(frame: int) -> Mapping[str, Any] | None:
            memory: Mapping[str, Any] | None = self.tracked.get(frame)  # first, as upstream
            return self.prompted.get(frame) if memory is None and frame not in attended else memory

        maps = list(near)
        rows = [num_maps - 1] * len(near)
        for row in range(num_maps - 1, 0, -1):
            frame = _map_frame(now, step, row, stride)
            memory = candidate(frame)
            if memory is not None and has_map(memory):
                maps.append(frame)
                rows.append(row - 1)
        num_pointers = num_pointers if num_frames is None else min(num_frames, num_pointers)
        longest = max(num_pointers - 1, 1)
        if not use_pointers:
            return Recall(tuple(maps), tuple(rows), (), (), longest)
        pointers = [f for f in near if (f - now) * step <= 0 or not past_pointers_only]
        ages = [now - f if step > 0 else f - now for f in pointers]
        for age in range(1, num_pointers):
            frame = now - age * step
            if frame < 0 or (num_frames is not None and frame >= num_frames):
                break
            if candidate(frame) is not None:
                pointers.append(frame)
                ages.append(age)
        return Recall(tuple(maps), tuple(rows), tuple(pointers), tuple(ages), longest)

    def forget(
        self,
        now: int,
        step: int,
        max_map_age: int,
        max_pointer_age: int,
        both: bool,
        starts: Iterable[int] = (),
        stored_frames: int | None = None,
    ) -> None:
        """Drop memories that no later frame can recall, tracking from `now` in direction `step`.

        max_map_age: frames after which the map and the logits of a memory are dropped.
        max_pointer_age: frames after which a memory is dropped.
        both: also keep the memories near every prompted frame, so that a propagation in the other
            direction can start from there.
        starts: further frames from which a propagation in the other direction will start.
        stored_frames: of a stream, which can be passed again; corrected frames before them are
            dropped, too. None: corrected frames are kept.
        """
        anchors = [*(self.prompted if both else ()), *starts]
        for frame, memory in list(self.tracked.items()):
            age = min((abs(frame - a) for a in (now, *anchors)), default=0)
            if is_corrected(memory) and (stored_frames is None or age < stored_frames):
                continue
            if age > max_pointer_age:
                del self.tracked[frame]
            elif age > max_map_age and has_map(memory):
                self.tracked[frame] = compact(memory).without_map()

    def clear_around(self, frame: int, reach: int) -> None:
        """Drop tracked memories within `reach` frames of `frame`, except that of `frame`.

        Source: official `clear_non_cond_mem_around_input`.
        """
        for other in [f for f in self.tracked if abs(f - frame) <= reach and f != frame]:
            del self.tracked[other]


def nearest_frames(frames: list[int], now: int, limit: int) -> list[int]:
    """At most `limit` prompted frames to attend to; -1: all.

    They are the nearest one before `now`, the nearest one after it, then others by distance.
    Source: official `select_closest_cond_frames`.
    """
    if limit == -1 or len(frames) <= limit:
        return frames
    before = [f for f in frames if f < now]
    after = [f for f in frames if f >= now]
    nearest = [*([max(before)] if before else []), *([min(after)] if after else [])]
    rest = sorted((f for f in frames if f not in nearest), key=lambda f: abs(f - now))
    return nearest + rest[: limit - len(nearest)]


def _map_frame(now: int, step: int, row: int, stride: int) -> int:
    """The frame of the map with temporal row `row - 1`.

    For row 1 it is the previous frame, for the next rows every `stride`-th frame before it.
    """
    if row == 1:
        return now - step
    if step > 0:
        return (now - 2) // stride * stride - (row - 2) * stride
    return -(-(now + 2) // stride) * stride + (row - 2) * stride
