"""Checks of the options of the automatic mask generator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sam2_fast.image.crops import build_all_layer_point_grids


def require(name: str, value: Any, condition: bool, expected: str) -> None:
    """Raise ValueError, with the name of the option, unless `condition`."""
    if not condition:
        raise ValueError(f"{name}: expected {expected}, got {value!r}")


def require_whole(minimum: int, **options: Any) -> None:
    """Raise ValueError for the first option that is no integer of at least `minimum`."""
    for name, value in options.items():
        is_whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
        require(name, value, is_whole and value >= minimum, f"an integer of {minimum} or more")


def require_finite(minimum: float, **options: Any) -> None:
    """Raise ValueError for the first option that is no finite number of at least `minimum`."""
    for name, value in options.items():
        is_number = isinstance(value, (int, float, np.integer, np.floating))
        is_number = is_number and not isinstance(value, bool) and math.isfinite(value)
        least = "" if minimum == -math.inf else f" of {minimum} or more"
        require(name, value, is_number and value >= minimum, f"a finite number{least}")


def require_one_of(choices: tuple[str, ...], **options: str) -> None:
    """Raise ValueError for the first option that is none of `choices`."""
    for name, value in options.items():
        require(name, value, value in choices, f"one of {choices}")


def point_grids_of(
    points_per_side: int | None,
    point_grids: Sequence[npt.NDArray[Any]] | None,
    n_layers: int,
    scale_per_layer: int,
) -> list[npt.NDArray[Any]]:
    """The points of every crop layer, [N, 2] each; exactly one of the first two options is set.

    Raises ValueError if `point_grids` has too few arrays or arrays of wrong shapes.
    """
    if points_per_side is not None:
        return list(build_all_layer_point_grids(points_per_side, n_layers, scale_per_layer))
    grids = [np.asarray(grid) for grid in point_grids or ()]
    shapes = [grid.shape for grid in grids]
    valid = all(len(shape) == 2 and shape[0] > 0 and shape[1] == 2 for shape in shapes)
    valid = valid and all(grid.dtype.kind in "biuf" and np.isfinite(grid).all() for grid in grids)
    if len(grids) <= n_layers or not valid:
        raise ValueError(
            f"point_grids: expected {n_layers + 1} arrays [N, 2] of finite points in the unit "
            f"square, one per crop layer, got {shapes} of {[str(grid.dtype) for grid in grids]}"
        )
    return [grid.astype(np.float64) for grid in grids]
