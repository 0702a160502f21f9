"""Memory attention over memories that a table on the device names: what changes from frame to frame is data, so the launches do not."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_fast.ops import tracing
from sam2_fast.ops.registry import BackendError

_EPS = 1e-5  # of the norms
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


def products_dtype(weight: Tensor) -> torch.dtype:
    """In which dtype products with `weight` are computed: autocast's where it is enabled."""
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


def memory_attention_at(
    x: Tensor, weights: Sequence[Tensor], table: Tensor, memories: MemoryTable, temporal: Tensor, place: Tensor, spans: int | None = None
) -> Tensor:
    """`memory_attention` in Triton, for memories that a table names. Launches depend on shapes alone, so that they can be recorded.

    x: [1 or B, N, C] on a cuda device; spans: in how many parts keys are taken (None: by the size of the device). Returns [B, N, C].
    """
    from sam2_fast.kernels.hiera_block import RELU, linear, moments
    from sam2_fast.kernels.memory_attention import memory_keys, turned_queries
    from sam2_fast.kernels.rope_attention import attend

    if (reason := tracing.recording_reason()) is not None:
        raise BackendError(f"memory_attention_at: {reason}, and no recorder sees a Triton kernel. Would run: memory_attention")
    dtype, dim, objects = products_dtype(weights[2]), x.shape[2], len(memories.firsts) - 1
    with torch.no_grad():
        given = [w.detach().to(dtype if w.ndim == 2 else w.dtype).contiguous() for w in weights]
        place, temporal, table = place.to(dtype).contiguous(), temporal.to(dtype).contiguous(), table.contiguous()
        narrow, firsts = place.shape[1], memories.firsts
        keys, values = place.new_empty(memories.keys, dim), place.new_empty(memories.keys, narrow)
        y = x.detach().contiguous()
        for i in range(len(weights) // 26):
            w, tokens = given[26 * i : 26 * i + 26], y.view(-1, dim)
            norm = (moments(tokens, _EPS), *w[:2])
            q, k = (turned_queries(y, *norm, table, *w[j : j + 2]) for j in (2, 4))
            found = attend(q, k, linear(tokens, *w[6:8], norm).view(y.shape), dim, spans=spans)
            y = linear(found.view(-1, dim), *w[8:10], residual=tokens, dtype=x.dtype).view(y.shape)
            q = turned_queries(y, moments(y.view(-1, dim), _EPS), *w[10:12], table, *w[12:14])
            memory_keys(memories.slots, memories.most, place, temporal, table, *w[14:16], keys, values, i == 0)
            found = attend(q, keys, values, dim, firsts, memories.longest, spans)
            tokens = y.expand(objects, -1, -1).reshape(-1, dim)  # from here on objects that share a frame differ
            tokens = linear(linear(found.view(-1, narrow), *w[16:18]), *w[18:20], residual=tokens, dtype=x.dtype)
            hidden = linear(tokens, *w[22:24], (moments(tokens, _EPS), *w[20:22]), RELU)
            y = linear(hidden, *w[24:26], residual=tokens, dtype=x.dtype).view(objects, -1, dim)
        return F.layer_norm(y, y.shape[-1:], given[-2].to(y.dtype), given[-1].to(y.dtype), _EPS)


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
    return MemoryTable(upload[:end].view(-1, SLOT), upload[end:], max(slot[3] for slot in slots), longest, firsts[-1])
