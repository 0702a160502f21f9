"""`sam2.modeling.sam2_utils`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from sam2_fast.data.clicks import get_next_point as get_next_point
from sam2_fast.data.clicks import sample_box_points as sample_box_points
from sam2_fast.data.clicks import (
    sample_one_point_from_error_center as sample_one_point_from_error_center,
)
from sam2_fast.data.clicks import (
    sample_random_points_from_errors as sample_random_points_from_errors,
)
from sam2_fast.model.layers import MLP as MLP
from sam2_fast.model.layers import DropPath as DropPath
from sam2_fast.model.layers import LayerNorm2d as LayerNorm2d
from sam2_fast.model.position import sine_age


def select_closest_cond_frames(
    frame_idx: int, cond_frame_outputs: Mapping[int, Any], max_cond_frame_num: int
) -> tuple[dict[int, Any], dict[int, Any]]:
    """Split the prompted frames into those to attend to and the rest.

    The nearest frame before `frame_idx` is chosen, the nearest one after it, then others by
    distance.
    max_cond_frame_num: -1 for all, else 2 or more.
    """
    if max_cond_frame_num == -1 or len(cond_frame_outputs) <= max_cond_frame_num:
        return dict(cond_frame_outputs), {}
    if max_cond_frame_num < 2:
        raise ValueError(f"max_cond_frame_num: expected -1 or at least 2, got {max_cond_frame_num}")
    before = [t for t in cond_frame_outputs if t < frame_idx]
    after = [t for t in cond_frame_outputs if t >= frame_idx]
    chosen = [*([max(before)] if before else []), *([min(after)] if after else [])]
    rest = sorted(
        (t for t in cond_frame_outputs if t not in chosen), key=lambda t: abs(t - frame_idx)
    )
    chosen += rest[: max_cond_frame_num - len(chosen)]
    return {t: cond_frame_outputs[t] for t in chosen}, {
        t: v for t, v in cond_frame_outputs.items() if t not in chosen
    }


def get_1d_sine_pe(pos_inds: Tensor, dim: int, temperature: float = 10000) -> Tensor:
    """Sines, then cosines, of positions: [..., dim]. pos_inds: [...]."""
    return sine_age(pos_inds, dim, temperature)


def get_activation_fn(activation: str) -> Callable[[Tensor], Tensor]:
    """The function named "relu", "gelu" or "glu". Raises RuntimeError for another name."""
    known: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "glu": F.glu}
    if activation not in known:
        raise RuntimeError(f"activation should be relu/gelu, not {activation}.")
    return known[activation]


def get_clones(module: nn.Module, N: int) -> nn.ModuleList:  # noqa: N803
    """N deep copies of a module."""
    return nn.ModuleList(copy.deepcopy(module) for _ in range(N))
