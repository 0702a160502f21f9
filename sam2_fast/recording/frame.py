"""A tracked frame as one recording: attend, decode, encode the memory. What objects remember is a
table in static memory.
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
from sam2_fast.recording.cuda_graph import CaptureError, Recorder, captured
from sam2_fast.types import Features, NoPoints, Remembered, Tracked

OBJECTS = (1, 2, 3, 4, 6, 8, 12, 16)
"""For how many objects frames are recorded; others take the next one, and what is too much is
thrown away.
"""

AGES, MOST_BLOCKS = 256, 32
"""Positions of pointers are computed for so many ages at once, and so many such blocks are kept."""


def room_for(model: Sam2, remembered: Remembered) -> Room:
    """The smallest room that `remembered` fits into. Maps and pointers are counted in powers of two
    from what most frames have.
    """
    config = model.config
    objects = next(n for n in OBJECTS if n >= len(remembered.maps))
    maps, pointers = config.num_maps + 1, model.options.max_obj_ptrs_in_encoder
    while maps < max(map(len, remembered.maps)):
        maps *= 2
    while pointers < max(map(len, remembered.pointers)):
        pointers *= 2
    return Room(objects, maps, pointers, config.grid**2, config.hidden_dim // config.memory_dim)


class FrameGraph:
    """attend -> decode -> encode_memory of up to `room.objects` objects on one frame, whatever each
    of them remembers.
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
        """features: of a frame, for their shapes; pointer_dtype: of remembered pointers. Nothing is
        recorded yet."""
        device, config = features.low.device, model.config
        self._model, self._room, self._longest, self._multimask = model, room, longest, multimask
        self._features = Features(*(torch.empty_like(x) for x in features))
        self._dtype = compute_dtype(model.no_mem_embed)
        places = room.objects * room.pointers
        self._pointers = torch.zeros(places, config.hidden_dim, dtype=self._dtype, device=device)
        self._positions = torch.zeros(
            places * room.parts, config.memory_dim, dtype=self._dtype, device=device
        )
        # Says the type of what addresses point to.
        self._like = torch.empty(1, dtype=pointer_dtype, device=device)
        sizes = (SLOT_FIELDS * room.slots, room.objects + 1, places, places)
        self._numbers = torch.zeros(sum(sizes), dtype=torch.int64, device=device)
        slots, firsts, self._addresses, self._places = self._numbers.split(sizes)
        self._table = MemoryTable(
            slots.view(-1, SLOT_FIELDS),
            firsts,
            room.tokens,
            room.longest,
            room.objects * room.longest,
        )
        self._by_age: dict[
            int, Tensor
        ] = {}  # number of a block of ages -> positions [AGES, 256], as tokens of a pointer lie
        self._replay: Callable[[], Tracked] | None = None

    def track(self, recorder: Recorder, features: Features, remembered: Remembered) -> Tracked:
        """Results of the N objects of `remembered`, in memory of their own. Call it inside a turn
        of `recorder`.

        The first call records, or raises CaptureError where that fails.
        """
        held = self.fill(features, remembered)
        if self._replay is None:
            if self._model.prove and (reason := self._refuses_to_gather()) is not None:
                raise CaptureError(reason)
            self._replay = captured(recorder, self.run)
        tracked = Tracked(*(x[: len(remembered.maps)].clone() for x in self._replay()))
        del held  # its launches are enqueued: memory that is free from here on is used behind them
        return tracked

    def run(self) -> Tracked:
        """One frame, from static memory; what is recorded."""
        from sam2_fast.kernels.memory_attention import gather_rows

        model, features = self._model, self._features
        gather_rows(self._addresses, self._like, self._pointers)
        gather_rows(self._places, self._positions, self._positions.view(self._pointers.shape))
        fused = model.attend_at(features.low, self._table)
        logits, pointer, presence = model.track(
            fused, features, NoPoints(self._room.objects), None, self._multimask
        )
        return Tracked(
            logits, pointer, presence, model.encode_memory(features.low, logits, presence, False)
        )

    def _refuses_to_gather(self) -> str | None:
        """Why no kernel may gather pointers and their positions; None where one may."""
        of_pointers = gather_refusal(self._like, self._pointers)
        return of_pointers or gather_refusal(self._positions, self._pointers)

    def fill(self, features: Features, remembered: Remembered) -> list[list[Tensor]]:
        """Static memory gets this frame's features and, in one transfer, all numbers.

        Returns tensors that must live until `run` or its replay is enqueued: the numbers are their
        addresses.
        """
        maps = [[self._placed(m, self._dtype) for m in tensors] for tensors in remembered.maps]
        pointers = [
            [self._placed(p, self._like.dtype) for p in tensors] for tensors in remembered.pointers
        ]
        room = self._room
        for own, other in zip(self._features, features, strict=True):
            own.copy_(other)
        static = self._pointers.data_ptr(), self._positions.data_ptr()
        stride = room.pointers * self._pointers.shape[1] * self._pointers.element_size()
        where = [[m.data_ptr() for m in own] for own in maps]
        slots, firsts = table_rows(
            room, where, remembered.rows, [len(own) for own in pointers], static, stride
        )
        empty = [()] * (room.objects - len(maps))
        addresses = [
            n
            for own in (*pointers, *empty)
            for n in _filled([p.data_ptr() for p in own], room.pointers)
        ]
        blocks = [[self._positions_at(age // AGES) for age in own] for own in remembered.ages]
        # Bytes of a pointer's positions.
        size = self._pointers.shape[1] * self._positions.element_size()
        rows = [
            [block.data_ptr() + age % AGES * size for block, age in zip(*own, strict=True)]
            for own in zip(blocks, remembered.ages, strict=True)
        ]
        positions = [n for own in (*rows, *empty) for n in _filled(own, room.pointers)]
        refill(self._numbers, slots + firsts + addresses + positions)
        return [*maps, *pointers, *blocks]

    def _positions_at(self, block: int) -> Tensor:
        """Positions of pointers that are block * AGES frames old and more: [AGES, 256] in the
        compute dtype.
        """
        if block not in self._by_age:
            if len(self._by_age) == MOST_BLOCKS:
                self._by_age.clear()
            ages = torch.arange(
                block * AGES, (block + 1) * AGES, dtype=torch.float32, device=self._positions.device
            )
            found = self._model.pointer_positions(ages, self._longest).to(self._dtype)
            self._by_age[block] = found.view(AGES, -1).contiguous()
        return self._by_age[block]

    def _placed(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """As kernels read it by its address: contiguous, in `dtype`, on the
        device of the features.
        """
        if (
            tensor.dtype == dtype
            and tensor.device == self._features.low.device
            and tensor.is_contiguous()
        ):
            return tensor
        return tensor.to(self._features.low.device, dtype).contiguous()


def _filled(numbers: Sequence[int], length: int) -> list[int]:
    return [*numbers, *[0] * (length - len(numbers))]
