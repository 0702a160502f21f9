"""A table on the device with the addresses of memories.

What changes from frame to frame is in the table, so that the kernel launches stay the same and can
be captured in a CUDA graph.
"""

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
    """Addresses of the memories of B objects.

    Tokens are [count, M], contiguous, in the compute dtype, and must outlive the launches.
    """

    slots: Tensor
    """[S, SLOT_FIELDS] int64: a `Slot` in each row."""
    firsts: Tensor
    """[B + 1] int64: first key of each object. The result of an object without keys is NaN."""
    most: int  # maximum tokens of a slot
    longest: int  # maximum keys of an object
    keys: int  # maximum keys of all objects together


class Room(NamedTuple):
    """Capacity of a table: number of objects, and of maps and pointers for each.

    A map has `tokens` tokens, a pointer has `parts`.
    """

    objects: int
    maps: int
    pointers: int
    tokens: int
    parts: int

    @property
    def slots(self) -> int:
        """Rows of the table: for each object its maps, and one slot for all its pointers."""
        return self.objects * (self.maps + 1)

    @property
    def longest(self) -> int:
        """Maximum keys of one object."""
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

    maps: for each object the addresses of its maps; rows: their temporal rows; pointers: its number
        of pointers.
    pointer_tokens: addresses of all pointer tokens and of what is added to them; the
        `room.pointers` slots of object o begin at o * stride bytes.
    Objects beyond those of `maps` get one key each, the first token of the first memory, so that
    their results are finite.
    """
    firsts = [0]
    slots = [0] * (SLOT_FIELDS * room.slots)
    per_object = SLOT_FIELDS * (room.maps + 1)
    for o, (own, own_rows, count) in enumerate(zip(maps, rows, pointers, strict=True)):
        start = firsts[-1]
        at = o * per_object
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
    first_memory = maps[0][0] if maps[0] else pointer_tokens[0]
    for o in range(len(maps), room.objects):
        at = o * per_object
        slots[at + SLOT_TOKENS_ADDRESS] = first_memory
        slots[at + SLOT_FIRST_KEY] = firsts[-1]
        slots[at + SLOT_NUM_TOKENS] = 1
        firsts.append(firsts[-1] + 1)
    return slots, firsts


def table_of(slots: list[Slot], firsts: list[int], upload: Tensor) -> MemoryTable:
    """A table without spare capacity.

    upload: the numbers of `slots`, then those of `firsts`, on the device.
    """
    end = SLOT_FIELDS * len(slots)
    longest = max(b - a for a, b in pairwise(firsts))
    most = max(slot.num_tokens for slot in slots)
    return MemoryTable(upload[:end].view(-1, SLOT_FIELDS), upload[end:], most, longest, firsts[-1])
