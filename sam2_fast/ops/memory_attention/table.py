"""Memories that a table on the device names: what changes from frame to frame is data, so the
launches do not."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor

from sam2_fast.kernels.memory_slots import (
    SLOT_ADDED_ADDRESS,
    SLOT_FIELDS,
    SLOT_FIRST_KEY,
    SLOT_NUM_TOKENS,
    SLOT_TEMPORAL_ROW,
    SLOT_TOKENS_ADDRESS,
    Slot,
)


class MemoryTable(NamedTuple):
    """Where the memories of B objects lie.

    Tokens are [count, M], contiguous, in the compute dtype, and outlive the launches.
    """

    slots: Tensor
    """[S, SLOT_FIELDS] int64: a `Slot` each."""
    firsts: Tensor
    """[B + 1] int64: where each object's keys begin. An object without any comes out as NaN."""
    most: int  # tokens of a slot, at most
    longest: int  # keys of an object, at most
    keys: int  # keys of all objects, at most


class Room(NamedTuple):
    """For how many objects, and maps and pointers of each, a table has room.

    A map is `tokens` tokens, a pointer is `parts`.
    """

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
    pointer_tokens: tuple[int, int],
    stride: int,
) -> tuple[list[int], list[int]]:
    """`MemoryTable.slots` and `.firsts` as lists, for up to `room.objects` objects.

    maps: addresses of each object's maps; rows: their temporal rows; pointers: how many pointers
        each has.
    pointer_tokens: addresses of all pointer tokens and of what is added to them, where object o has
        `room.pointers` places from o * stride bytes on.
    Objects beyond those of `maps` get one key each, the first token of the first memory, so that
    their results are finite.
    """
    firsts = [0]
    slots = [0] * (SLOT_FIELDS * room.slots)
    per_object = SLOT_FIELDS * (room.maps + 1)
    for o, (own, own_rows, count) in enumerate(zip(maps, rows, pointers, strict=True)):
        start, at = firsts[-1], o * per_object
        for address, row in zip(own, own_rows, strict=True):
            slots[at + SLOT_TOKENS_ADDRESS] = address
            slots[at + SLOT_FIRST_KEY] = start
            slots[at + SLOT_NUM_TOKENS] = room.tokens
            slots[at + SLOT_TEMPORAL_ROW] = row
            start += room.tokens
            at += SLOT_FIELDS
        at = o * per_object + SLOT_FIELDS * room.maps
        slots[at + SLOT_TOKENS_ADDRESS] = pointer_tokens[0] + o * stride
        slots[at + SLOT_ADDED_ADDRESS] = pointer_tokens[1] + o * stride
        slots[at + SLOT_FIRST_KEY] = start
        slots[at + SLOT_NUM_TOKENS] = count * room.parts
        firsts.append(start + count * room.parts)
    anything = maps[0][0] if maps[0] else pointer_tokens[0]
    for o in range(len(maps), room.objects):
        at = o * per_object
        slots[at + SLOT_TOKENS_ADDRESS] = anything
        slots[at + SLOT_FIRST_KEY] = firsts[-1]
        slots[at + SLOT_NUM_TOKENS] = 1
        firsts.append(firsts[-1] + 1)
    return slots, firsts


def table_of(slots: list[Slot], firsts: list[int], upload: Tensor) -> MemoryTable:
    """A table that fits its memories exactly.

    upload: the numbers of `slots`, then of `firsts`, on the device.
    """
    end = SLOT_FIELDS * len(slots)
    longest = max(b - a for a, b in pairwise(firsts))
    most = max(slot.num_tokens for slot in slots)
    return MemoryTable(upload[:end].view(-1, SLOT_FIELDS), upload[end:], most, longest, firsts[-1])
