"""Memory attention over memories that a table on the device names: what changes from frame to frame is data, so the launches do not."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor

SLOT = 5
"""Numbers of a slot in `MemoryTable.slots`."""


class MemoryTable(NamedTuple):
    """Where the memories of B objects lie. Tokens are [count, m], contiguous, in the dtype of products, and outlive the launches."""

    slots: Tensor
    """[S, 5] int64: address of a slot's tokens; address of what is added to them for their keys, 0 for a map (whose keys are turned,
    and get place and temporal row); where its keys begin; its tokens (0: not in use); its temporal row."""
    firsts: Tensor
    """[B + 1] int64: where each object's keys begin. An object without any comes out as NaN."""
    most: int  # tokens of a slot, at most
    longest: int  # keys of an object, at most
    keys: int  # keys of all objects, at most


class Room(NamedTuple):
    """For how many objects, and maps and pointers of each, a table has room. A map is `tokens` tokens, a pointer is `parts`."""

    objects: int
    maps: int
    pointers: int
    tokens: int
    parts: int

    @property
    def slots(self) -> int:
        """Rows of the table: an object's maps, and one slot for all its pointers."""
        return self.objects * (self.maps + 1)

    @property
    def longest(self) -> int:
        """Keys of one object."""
        return self.maps * self.tokens + self.pointers * self.parts


def table_rows(
    room: Room,
    maps: Sequence[Sequence[int]],
    rows: Sequence[Sequence[int]],
    pointers: Sequence[int],
    loose: tuple[int, int],
    stride: int,
) -> tuple[list[int], list[int]]:
    """`MemoryTable.slots` and `.firsts` as lists, for up to `room.objects` objects.

    maps: addresses of each object's maps; rows: their temporal rows; pointers: how many pointers each has.
    loose: addresses of all pointer tokens and of what is added to them, where object o has `room.pointers` places from o * stride bytes on.
    What the room has more objects than there are get one key each, the first token of the first memory, so that they stay numbers.
    """
    slots, firsts = [], [0]
    for o, (mine, when, count) in enumerate(zip(maps, rows, pointers, strict=True)):
        start = firsts[-1]
        for address, row in zip(mine, when, strict=True):
            slots += [address, 0, start, room.tokens, row]
            start += room.tokens
        slots += [0] * (SLOT * (room.maps - len(mine)))
        slots += [loose[0] + o * stride, loose[1] + o * stride, start, count * room.parts, 0]
        firsts.append(start + count * room.parts)
    anything = maps[0][0] if maps[0] else loose[0]
    for _ in range(room.objects - len(maps)):
        slots += [anything, 0, firsts[-1], 1, 0, *[0] * (SLOT * room.maps)]
        firsts.append(firsts[-1] + 1)
    return slots, firsts


def table_of(slots: list[list[int]], firsts: list[int], upload: Tensor) -> MemoryTable:
    """A table that fits its memories exactly. upload: the numbers of `slots`, then of `firsts`, on the device."""
    end = SLOT * len(slots)
    longest = max(b - a for a, b in pairwise(firsts))
    return MemoryTable(
        upload[:end].view(-1, SLOT),
        upload[end:],
        max(slot[3] for slot in slots),
        longest,
        firsts[-1],
    )
