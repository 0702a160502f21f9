"""A tracked frame as one CUDA graph: attend, decode, encode the memory.

The graph reads the memories of objects through a table in static memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sam2_fast.kernels.memory_slots import SLOT_FIELDS
from sam2_fast.model import Sam2
from sam2_fast.ops.core.autocast import compute_dtype
from sam2_fast.ops.core.transfer import refill
from sam2_fast.ops.memory_attention.gather_rows import gather_refusal
from sam2_fast.ops.memory_attention.table import MemoryTable, Room, table_rows
from sam2_fast.recording.cuda_graph import CaptureError, Recorder, capture
from sam2_fast.types import Features, NoPoints, Remembered, Tracked

OBJECT_BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16)
"""Numbers of objects for which frames are captured.

Another number of objects uses the next larger graph, and the surplus results are discarded.
"""

AGES_PER_BLOCK = 256
"""Ages for which positions of pointers are computed together."""
MAX_AGE_BLOCKS = 32
"""Blocks of positions that are cached."""


def room_for(model: Sam2, remembered: Remembered) -> Room:
    """The smallest room that `remembered` fits into.

    The numbers of maps and pointers start from those of most frames and are doubled as needed.
    """
    config = model.config
    objects = next(n for n in OBJECT_BUCKETS if n >= len(remembered.maps))
    maps = config.num_maps + 1
    pointers = model.options.max_obj_ptrs_in_encoder
    while maps < max(map(len, remembered.maps)):
        maps *= 2
    while pointers < max(map(len, remembered.pointers)):
        pointers *= 2
    return Room(objects, maps, pointers, config.grid**2, config.hidden_dim // config.memory_dim)


class FrameGraph:
    """attend -> decode -> encode_memory of up to `room.objects` objects on one frame.

    One graph serves all lengths of memory that fit into `room`.
    """

    def __init__(
        self,
        model: Sam2,
        features: Features,
        room: Room,
        longest: int,
        multimask: bool,
        pointer_dtype: torch.dtype,
    ) -> None:
        """Allocate static memory; nothing is captured yet.

        features: of any frame, for their shapes and dtypes.
        pointer_dtype: dtype of the stored object pointers.
        """
        device = features.low.device
        config = model.config
        self._model = model
        self._room = room
        self._longest = longest
        self._multimask = multimask
        self._features = Features(*(torch.empty_like(x) for x in features))
        self._dtype = compute_dtype(model.no_mem_embed)
        num_pointers = room.objects * room.pointers
        self._pointers = torch.zeros(
            num_pointers, config.hidden_dim, dtype=self._dtype, device=device
        )
        self._positions = torch.zeros(
            num_pointers * room.parts, config.memory_dim, dtype=self._dtype, device=device
        )
        # Only its dtype is used: that of the pointers behind `_pointer_addresses`.
        self._pointer_like = torch.empty(1, dtype=pointer_dtype, device=device)
        sizes = (SLOT_FIELDS * room.slots, room.objects + 1, num_pointers, num_pointers)
        self._integers = torch.zeros(sum(sizes), dtype=torch.int64, device=device)
        slots, firsts, self._pointer_addresses, self._position_addresses = self._integers.split(
            sizes
        )
        self._table = MemoryTable(
            slots.view(-1, SLOT_FIELDS),
            firsts,
            room.tokens,
            room.longest,
            room.objects * room.longest,
        )
        # Block number -> positions [AGES_PER_BLOCK, 256], the tokens of a pointer side by side.
        self._position_blocks: dict[int, Tensor] = {}
        self._replay: Callable[[], Tracked] | None = None

    def track(self, recorder: Recorder, features: Features, remembered: Remembered) -> Tracked:
        """Results of the N objects of `remembered`, copied out of static memory.

        Call it inside `recorder.exclusive`. The first call captures the graph, and raises
        CaptureError if that fails.
        """
        addressed = self.fill(features, remembered)
        if self._replay is None:
            if self._model.prove and (reason := self._gather_refusal()) is not None:
                raise CaptureError(reason)
            self._replay = capture(recorder, self.run)
        tracked = Tracked(*(x[: len(remembered.maps)].clone() for x in self._replay()))
        # The replay is enqueued: work that uses this memory again is ordered after it.
        del addressed
        return tracked

    def run(self) -> Tracked:
        """One frame, computed from static memory; this function is captured."""
        from sam2_fast.kernels.memory_attention import gather_rows

        model = self._model
        features = self._features
        pointers = self._pointers
        positions = self._positions
        gather_rows(self._pointer_addresses, self._pointer_like, pointers)
        gather_rows(self._position_addresses, positions, positions.view(pointers.shape))
        fused = model.attend_at(features.low, self._table)
        logits, pointer, presence = model.track(
            fused, features, NoPoints(self._room.objects), None, self._multimask
        )
        maps = model.encode_memory(features.low, logits, presence, False)
        return Tracked(logits, pointer, presence, maps)

    def _gather_refusal(self) -> str | None:
        """Why no kernel may gather pointers and their positions, or None."""
        pointer_refusal = gather_refusal(self._pointer_like, self._pointers)
        return pointer_refusal or gather_refusal(self._positions, self._pointers)

    def fill(self, features: Features, remembered: Remembered) -> list[list[Tensor]]:
        """Copy a frame's features to static memory, and all integers in one transfer.

        Returns the tensors that the integers contain the addresses of. They must live until `run`
        or its replay is enqueued.
        """
        room = self._room
        maps = [[self._addressable(m, self._dtype) for m in own] for own in remembered.maps]
        pointers = [
            [self._addressable(p, self._pointer_like.dtype) for p in own]
            for own in remembered.pointers
        ]
        for static, level in zip(self._features, features, strict=True):
            static.copy_(level)
        static_addresses = self._pointers.data_ptr(), self._positions.data_ptr()
        stride = room.pointers * self._pointers.shape[1] * self._pointers.element_size()
        map_addresses = [[m.data_ptr() for m in own] for own in maps]
        counts = [len(own) for own in pointers]
        slots, firsts = table_rows(
            room, map_addresses, remembered.rows, counts, static_addresses, stride
        )
        blocks = [
            [self._positions_of_block(age // AGES_PER_BLOCK) for age in own]
            for own in remembered.ages
        ]
        # bytes of the positions of one pointer
        size = self._pointers.shape[1] * self._positions.element_size()
        position_addresses = [
            [
                block.data_ptr() + age % AGES_PER_BLOCK * size
                for block, age in zip(own_blocks, own_ages, strict=True)
            ]
            for own_blocks, own_ages in zip(blocks, remembered.ages, strict=True)
        ]
        pointer_addresses = [[p.data_ptr() for p in own] for own in pointers]
        refill(
            self._integers,
            slots + firsts + self._padded(pointer_addresses) + self._padded(position_addresses),
        )
        return [*maps, *pointers, *blocks]

    def _padded(self, addresses: Sequence[Sequence[int]]) -> list[int]:
        """Addresses of each object, filled up with zeros to the numbers of `room`, as one list."""
        length = self._room.pointers
        rows = [*addresses, *[()] * (self._room.objects - len(addresses))]
        return [n for row in rows for n in (*row, *[0] * (length - len(row)))]

    def _positions_of_block(self, block: int) -> Tensor:
        """Positions of pointers for a block of ages: [AGES_PER_BLOCK, 256] in the compute dtype.

        Row i is for an age of block * AGES_PER_BLOCK + i frames.
        """
        if block not in self._position_blocks:
            if len(self._position_blocks) == MAX_AGE_BLOCKS:
                self._position_blocks.clear()
            first = block * AGES_PER_BLOCK
            ages = torch.arange(
                first, first + AGES_PER_BLOCK, dtype=torch.float32, device=self._positions.device
            )
            positions = self._model.pointer_positions(ages, self._longest).to(self._dtype)
            self._position_blocks[block] = positions.view(AGES_PER_BLOCK, -1).contiguous()
        return self._position_blocks[block]

    def _addressable(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """`tensor` as kernels read it by its address: contiguous, in `dtype`, on the device."""
        device = self._features.low.device
        if tensor.dtype == dtype and tensor.device == device and tensor.is_contiguous():
            return tensor
        return tensor.to(device, dtype).contiguous()
