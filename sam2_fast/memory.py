"""What one object remembers: data and integer rules, no computation on tensors."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import Tensor

from sam2_fast.types import FrameMemory, Recall


@dataclass
class MemoryBank:
    """Memories of one object, by frame number.

    prompted: frames with a prompt; never forgotten while the prompt stands. tracked: frames that
    propagation passed, and `corrected` ones among them, which a later propagation keeps as the user
    left them.
    """

    prompted: dict[int, FrameMemory] = field(default_factory=dict)
    tracked: dict[int, FrameMemory] = field(default_factory=dict)
    corrected: set[int] = field(default_factory=set)

    def get(self, frame: int) -> FrameMemory | None:
        """What is remembered of a frame, prompted or tracked."""
        return self.prompted.get(frame) or self.tracked.get(frame)

    def map(self, frame: int) -> Tensor:
        """The memory map of a frame that is remembered with one, [h * w, 64]."""
        memory = self.get(frame)
        if memory is None or memory.map is None:
            raise KeyError(f"frame {frame} has no memory map")
        return memory.map

    def pointer(self, frame: int) -> Tensor:
        """The object pointer of a frame that is remembered, [256]."""
        memory = self.get(frame)
        if memory is None:
            raise KeyError(f"frame {frame} is not remembered")
        return memory.pointer

    def settled(self, frame: int) -> FrameMemory | None:
        """A frame that propagation must not track again: prompted or corrected."""
        return self.prompted.get(frame) or (
            self.tracked.get(frame) if frame in self.corrected else None
        )

    def recall(
        self,
        now: int,
        step: int,
        num_frames: int | None,
        num_maps: int = 7,
        num_pointers: int = 16,
        stride: int = 1,
        max_prompted: int = -1,
    ) -> Recall:
        """Which memories frame `now` attends to when tracking in direction `step` (+1 or -1).

        All prompted maps (at most `max_prompted`, the nearest), the `num_maps - 1` tracked maps
        before `now` (every `stride`-th), and up to `num_pointers - 1` recent pointers plus those of
        prompted frames that the direction has passed.
        num_frames: None where unknown; it caps the pointers. Source: official
            `_prepare_memory_conditioned_features`.
        """
        near = self._nearest_prompted(now, max_prompted)
        attended = set(near)

        def candidate(frame: int) -> FrameMemory | None:
            memory = self.tracked.get(frame)  # tracked wins, as upstream
            return self.prompted.get(frame) if memory is None and frame not in attended else memory

        maps, rows = list(near), [num_maps - 1] * len(near)
        for row in range(num_maps - 1, 0, -1):
            frame = _map_frame(now, step, row, stride)
            memory = candidate(frame)
            if memory is not None and memory.map is not None:
                maps.append(frame)
                rows.append(row - 1)
        num_pointers = num_pointers if num_frames is None else min(num_frames, num_pointers)
        pointers = [f for f in near if (f - now) * step <= 0]
        ages = [now - f if step > 0 else f - now for f in pointers]
        for age in range(1, num_pointers):
            frame = now - age * step
            if frame < 0 or (num_frames is not None and frame >= num_frames):
                break
            if candidate(frame) is not None:
                pointers.append(frame)
                ages.append(age)
        return Recall(
            tuple(maps), tuple(rows), tuple(pointers), tuple(ages), max(num_pointers - 1, 1)
        )

    def _nearest_prompted(self, now: int, limit: int) -> list[int]:
        """Prompted frames to attend to: all, or the nearest before, the nearest after, then by
        distance (official `select_closest_cond_frames`)."""
        frames = list(self.prompted)
        if limit == -1 or len(frames) <= limit:
            return frames
        before, after = [f for f in frames if f < now], [f for f in frames if f >= now]
        chosen = [*([max(before)] if before else []), *([min(after)] if after else [])]
        rest = sorted((f for f in frames if f not in chosen), key=lambda f: abs(f - now))
        return chosen + rest[: limit - len(chosen)]

    def forget(
        self, now: int, step: int, max_map_age: int, max_pointer_age: int, both: bool
    ) -> None:
        """Drop what no later frame can recall when tracking goes on from `now` in direction `step`.

        Maps older than `max_map_age` frames and entries older than `max_pointer_age` go. both: keep
        such windows around every prompted frame too, so that a pass in the other direction can
        start there. Corrected frames stay.
        """
        anchors = list(self.prompted) if both else []
        for frame, memory in list(self.tracked.items()):
            if frame in self.corrected:
                continue
            age = min((abs(frame - a) for a in (now, *anchors)), default=0)
            if age > max_pointer_age:
                del self.tracked[frame]
            elif age > max_map_age and memory.map is not None:
                self.tracked[frame] = replace(memory, map=None, logits=None)

    def clear_around(self, frame: int, reach: int) -> None:
        """Drop tracked memories within `reach` frames (official
        `clear_non_cond_mem_around_input`).
        """
        for other in [f for f in self.tracked if abs(f - frame) <= reach and f != frame]:
            del self.tracked[other]
            self.corrected.discard(other)

    def copy(self) -> MemoryBank:
        """A bank that can be changed without changing this one; the memories
        themselves are shared.
        """
        return MemoryBank(dict(self.prompted), dict(self.tracked), set(self.corrected))


def _map_frame(now: int, step: int, row: int, stride: int) -> int:
    """The frame whose map takes temporal row `row - 1`: the last frame for row 1, then every
    `stride`-th before it.
    """
    if row == 1:
        return now - step
    if step > 0:
        return (now - 2) // stride * stride - (row - 2) * stride
    return -(-(now + 2) // stride) * stride + (row - 2) * stride
