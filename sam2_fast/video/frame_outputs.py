"""The memories of an object under the names of the official `output_dict`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

import torch
from torch import Tensor

from sam2_fast.memory import MemoryBank
from sam2_fast.model import Sam2
from sam2_fast.model.layers import to_map, to_tokens
from sam2_fast.types import FrameMemory


class FrameOutputs(MutableMapping[int, dict[str, Any]]):
    """Frame number -> output of the frame; a live view of memories, for a batch of one object.

    Keys of an output: maskmem_features [1, 64, h, w] or None, maskmem_pos_enc, pred_masks
    [1, 1, 4h, 4w] or None, obj_ptr [1, 256] and object_score_logits [1, 1].
    """

    def __init__(
        self, memories: dict[int, FrameMemory], position: Callable[[torch.dtype], Tensor]
    ) -> None:
        """position: of memory maps, [1, 64, h, w], in a dtype."""
        self._memories = memories
        self._position = position

    @classmethod
    def views(
        cls, bank: MemoryBank, model: Sam2, position: Tensor | None = None
    ) -> dict[str, FrameOutputs]:
        """The official `output_dict` of an object.

        position: of memory maps, [1, 64, h, w]; None: that of the model.
        """

        def position_in(dtype: torch.dtype) -> Tensor:
            return model._memory_map_position(dtype) if position is None else position.to(dtype)

        return {
            "cond_frame_outputs": cls(bank.prompted, position_in),
            "non_cond_frame_outputs": cls(bank.tracked, position_in),
        }

    def __getitem__(self, frame: int) -> dict[str, Any]:
        memory = self._memories[frame]
        features, position = None, None
        if memory.map is not None:
            position = [self._position(memory.map.dtype)]
            features = to_map(memory.map[None], *position[0].shape[-2:])
        return {
            "maskmem_features": features,
            "maskmem_pos_enc": position,
            "pred_masks": None if memory.logits is None else memory.logits[None],
            "obj_ptr": memory.pointer[None],
            "object_score_logits": memory.presence[None],
        }

    def __setitem__(self, frame: int, output: dict[str, Any]) -> None:
        features, logits = output["maskmem_features"], output["pred_masks"]
        self._memories[frame] = FrameMemory(
            output["obj_ptr"][0],
            output["object_score_logits"][0],
            None if features is None else to_tokens(features)[0],
            None if logits is None else logits[0],
        )

    def __delitem__(self, frame: int) -> None:
        del self._memories[frame]

    def __iter__(self) -> Iterator[int]:
        return iter(self._memories)

    def __len__(self) -> int:
        return len(self._memories)
