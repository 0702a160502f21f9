"""Which prompted frames a frame attends to, by the official function."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping
from typing import Any, cast

from sam2_fast.memory.bank import nearest_frames

Outputs = Mapping[str, Mapping[int, Any]]
"""The official `output_dict`."""


def select_closest_cond_frames(
    frame_idx: int, cond_frame_outputs: Mapping[int, Any], max_cond_frame_num: int
) -> tuple[dict[int, Any], dict[int, Any]]:
    """Split the prompted frames into those to attend to and the rest.

    The nearest frame before `frame_idx` is chosen, the nearest one after it, then others by
    distance.
    max_cond_frame_num: -1 for all, else 2 or more.
    """
    if max_cond_frame_num != -1 and max_cond_frame_num < min(2, len(cond_frame_outputs)):
        raise ValueError(f"max_cond_frame_num: expected -1 or at least 2, got {max_cond_frame_num}")
    chosen = nearest_frames(list(cond_frame_outputs), frame_idx, max_cond_frame_num)
    return {t: cond_frame_outputs[t] for t in chosen}, {
        t: v for t, v in cond_frame_outputs.items() if t not in chosen
    }


def attended_outputs(frame_idx: int, output_dict: Outputs, max_cond_frame_num: int) -> Outputs:
    """`output_dict` with only those prompted frames that a frame attends to.

    The others are treated like tracked ones, unless they were tracked, too.
    """
    prompted, others = select_closest_cond_frames(
        frame_idx, output_dict["cond_frame_outputs"], max_cond_frame_num
    )
    tracked = ChainMap(cast(Any, output_dict["non_cond_frame_outputs"]), others)
    return {"cond_frame_outputs": prompted, "non_cond_frame_outputs": tracked}
