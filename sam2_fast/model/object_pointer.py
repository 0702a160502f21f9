"""Object pointers: a decoder token as memory, and the place in time that each carries."""

from __future__ import annotations

from torch import Tensor, nn

from sam2_fast.model.position import sine_age


def age_position(
    ages: Tensor, longest: int, project: nn.Linear | None, hidden_dim: int, memory_dim: int
) -> Tensor:
    """ages: [B, P] frames -> [B, P, memory_dim] position of each pointer; zeros where the model has
    no projection (2.0).
    """
    if project is None:
        return ages.new_zeros(*ages.shape, memory_dim)
    return project(sine_age(ages / longest, hidden_dim).to(project.weight.dtype))


def split_pointers(pointers: Tensor, memory_dim: int) -> Tensor:
    """pointers: [B, P, 256] -> [B, P * 4, 64]: a pointer is as wide as four memory tokens."""
    return pointers.unflatten(-1, (-1, memory_dim)).flatten(1, 2)
