"""Object pointers: output tokens of the decoder as memories, and their temporal positions."""

from __future__ import annotations

from torch import Tensor, nn

from sam2_fast.model.position import sine_age


def age_position(
    ages: Tensor, longest: int, project: nn.Linear | None, hidden_dim: int, memory_dim: int
) -> Tensor:
    """ages: [B, P] frames -> [B, P, memory_dim] temporal position of each pointer.

    project: None for models of version 2.0, which have no temporal positions of pointers: zeros.
    """
    if project is None:
        return ages.new_zeros(*ages.shape, memory_dim)
    return project(sine_age(ages / longest, hidden_dim).to(project.weight.dtype))


def split_pointers(pointers: Tensor, memory_dim: int) -> Tensor:
    """pointers: [B, P, 256] -> [B, P * 4, 64], four memory tokens for each pointer."""
    return pointers.unflatten(-1, (-1, memory_dim)).flatten(1, 2)
