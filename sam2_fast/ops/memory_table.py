"""Memory attention over memories that a table on the device names: what changes from frame to frame is data, so the launches do not."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
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
from sam2_fast.ops import tracing
from sam2_fast.ops.registry import BackendError
from sam2_fast.ops.weights import derive

_EPS = 1e-5  # of the norms
KEYS_BYTES = 128 << 20
"""Keys of all layers are made in one launch while they take no more bytes than this, else layer by layer."""


class MemoryTable(NamedTuple):
    """Where the memories of B objects lie. Tokens are [count, m], contiguous, in the dtype of products, and outlive the launches."""

    slots: Tensor
    """[S, SLOT_FIELDS] int64: a `Slot` each."""
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
    from sam2_fast.kernels.attention import attend
    from sam2_fast.kernels.linear import RELU, behind_norm, linear, measured_linear
    from sam2_fast.kernels.memory_attention import memory_keys, project

    if (reason := tracing.recording_reason()) is not None:
        raise BackendError(f"memory_attention_at: {reason}, and no recorder sees a Triton kernel. Would run: memory_attention")
    dtype, dim, objects = products_dtype(weights[2]), x.shape[2], len(memories.firsts) - 1
    with torch.no_grad():
        layers, key_weight, key_bias = derive(weights, f"memory_attention {dtype}", lambda: _layers(weights, dtype))
        place, temporal, table = place.to(dtype).contiguous(), temporal.to(dtype).contiguous(), table.contiguous()
        narrow, firsts = place.shape[1], memories.firsts
        together = len(layers) if memories.keys * dim * len(layers) * place.element_size() <= KEYS_BYTES else 1
        keys, values = place.new_empty(together, memories.keys, dim), place.new_empty(memories.keys, narrow)
        y = x.detach().contiguous()
        for i, layer in enumerate(layers):
            q, k, v = project(y, layer["self"], table, rotated=2)
            found = attend(q, k, v, dim, spans=spans)
            tokens = y.view(-1, dim)
            y = linear(found.view(-1, dim), layer["self_out"], residual=tokens, dtype=x.dtype).view(y.shape)
            (q,) = project(y, layer["query"], table, rotated=1)
            if i % together == 0:
                some = slice(i, i + together)
                memory_keys(
                    memories.slots, memories.most, place, temporal, table, key_weight[some], key_bias[some], keys, values, i == 0
                )  # fmt: skip
            found = attend(q, keys[i % together], values, dim, firsts, memories.longest, spans)
            tokens = y.expand(objects, -1, -1).reshape(-1, dim)  # from here on objects that share a frame differ
            tokens, measured = measured_linear(found.view(-1, narrow), layer["out"], residual=tokens, dtype=x.dtype)
            normed, measured = behind_norm(tokens, layer["linear1"], measured)
            hidden = linear(normed, layer["linear1"], measured, activation=RELU)
            y = linear(hidden, layer["linear2"], residual=tokens, dtype=x.dtype).view(objects, -1, dim)
        return F.layer_norm(y, y.shape[-1:], weights[-2].to(y.dtype), weights[-1].to(y.dtype), _EPS)


def _layers(weights: Sequence[Tensor], dtype: torch.dtype) -> tuple[list[dict[str, Any]], Tensor, Tensor]:
    """Each layer's linear layers as its Triton kernels take them, and the projections of the memories' keys of all layers.

    The memories' values are projected after they were attended to, in one product with the output projection.
    """
    from sam2_fast.kernels.linear import Layer, Norm, fold

    given = [w.detach().to(dtype if w.ndim == 2 else w.dtype).contiguous() for w in weights]
    layers = []
    for i in range(len(weights) // 26):
        w = given[26 * i : 26 * i + 26]
        wide = [t.detach().float() for t in weights[26 * i + 16 : 26 * i + 20]]  # values and output of the memories
        layers.append(
            {
                "self": Layer(torch.cat(w[2:8:2]), torch.cat(w[3:8:2]), Norm(w[0], w[1], _EPS)),
                "self_out": Layer(w[8], w[9]),
                "query": Layer(w[12], w[13], Norm(w[10], w[11], _EPS)),
                "out": Layer((wide[2] @ wide[0]).to(dtype), wide[2] @ wide[1] + wide[3]),
                "linear1": fold(w[22], w[23], Norm(w[20], w[21], _EPS)),
                "linear2": Layer(w[24], w[25]),
            }
        )
    return layers, torch.stack(given[14:-2:26]), torch.stack(given[15:-2:26])


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
    firsts = [0]
    slots = [0] * (SLOT_FIELDS * room.slots)
    per_object = SLOT_FIELDS * (room.maps + 1)
    for o, (mine, when, count) in enumerate(zip(maps, rows, pointers, strict=True)):
        start, at = firsts[-1], o * per_object
        for address, row in zip(mine, when, strict=True):
            slots[at + SLOT_TOKENS_ADDRESS] = address
            slots[at + SLOT_FIRST_KEY] = start
            slots[at + SLOT_NUM_TOKENS] = room.tokens
            slots[at + SLOT_TEMPORAL_ROW] = row
            start += room.tokens
            at += SLOT_FIELDS
        at = o * per_object + SLOT_FIELDS * room.maps
        slots[at + SLOT_TOKENS_ADDRESS] = loose[0] + o * stride
        slots[at + SLOT_ADDED_ADDRESS] = loose[1] + o * stride
        slots[at + SLOT_FIRST_KEY] = start
        slots[at + SLOT_NUM_TOKENS] = count * room.parts
        firsts.append(start + count * room.parts)
    anything = maps[0][0] if maps[0] else loose[0]
    for o in range(len(maps), room.objects):
        at = o * per_object
        slots[at + SLOT_TOKENS_ADDRESS] = anything
        slots[at + SLOT_FIRST_KEY] = firsts[-1]
        slots[at + SLOT_NUM_TOKENS] = 1
        firsts.append(firsts[-1] + 1)
    return slots, firsts


def table_of(slots: list[Slot], firsts: list[int], upload: Tensor) -> MemoryTable:
    """A table that fits its memories exactly. upload: the numbers of `slots`, then of `firsts`, on the device."""
    end = SLOT_FIELDS * len(slots)
    longest = max(b - a for a, b in pairwise(firsts))
    return MemoryTable(upload[:end].view(-1, SLOT_FIELDS), upload[end:], max(slot.num_tokens for slot in slots), longest, firsts[-1])
