"""Memories in the official `output_dict`: frame outputs of B objects, by frame number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from sam2_fast.memory import MemoryBank
from sam2_fast.types import Recall

_KINDS = ("cond_frame_outputs", "non_cond_frame_outputs")


def bank_of(output_dict: Mapping[str, Mapping[int, Any]]) -> MemoryBank:
    """The frame outputs as a bank, of which only `recall` is used: outputs may be of B objects.

    Raises ValueError if no frame was prompted.
    """
    prompted, tracked = (output_dict[kind] for kind in _KINDS)
    if not prompted:
        raise ValueError(
            "output_dict: expected at least one frame in 'cond_frame_outputs', got none"
        )
    return MemoryBank(prompted, tracked)  # type: ignore[arg-type] # it is only read


def recalled_maps(bank: MemoryBank, recall: Recall, num_maps: int) -> list[Tensor]:
    """The memory maps of `recall.maps`, [B, h * w, 64] each.

    A frame may be both prompted and tracked, and then counts twice. Prompted frames come first, and
    have the last temporal row.
    """
    num_prompted = sum(row == num_maps - 1 for row in recall.rows)
    return [_map(output) for output in _look_up(bank, recall.maps, num_prompted)]


def recalled_pointers(
    bank: MemoryBank, recall: Recall, num_maps: int, until: int | None, reverse: bool
) -> list[Tensor]:
    """The pointers of `recall.pointers`, [B, 256] each.

    Those of prompted frames up to the frame `until`, in the direction of tracking, come first.
    until: None: those of all prompted frames.
    """
    num_prompted = sum(row == num_maps - 1 for row in recall.rows)
    prompted = recall.maps[:num_prompted]
    num_passed = len(prompted)
    if until is not None:
        num_passed = sum(t >= until if reverse else t <= until for t in prompted)
    return [output["obj_ptr"] for output in _look_up(bank, recall.pointers, num_passed)]


def recalled_positions(
    output_dict: Mapping[str, Mapping[int, Any]], recall: Recall, num_maps: int
) -> list[Tensor]:
    """The positions of the maps of `recalled_maps`, [B, 64, h, w] each."""
    prompted, tracked = (output_dict[kind] for kind in _KINDS)
    num_prompted = sum(row == num_maps - 1 for row in recall.rows)
    outputs = [
        prompted[t] if i < num_prompted or t not in tracked else tracked[t]
        for i, t in enumerate(recall.maps)
    ]
    return [output["maskmem_pos_enc"][-1] for output in outputs]


def _look_up(bank: MemoryBank, frames: Sequence[int], num_prompted: int) -> list[Any]:
    """The outputs of frames, of which the first `num_prompted` are prompted ones."""
    return [
        bank.prompted[t] if i < num_prompted or t not in bank.tracked else bank.tracked[t]
        for i, t in enumerate(frames)
    ]


def _map(output: Any) -> Tensor:
    features: Tensor | None = output["maskmem_features"]
    if features is None:
        raise ValueError(
            "output_dict: a frame to attend to has no maskmem_features; run track_step with "
            "run_mem_encoder=True"
        )
    return features.flatten(2).transpose(1, 2)
