"""Weights of memory attention, and the memories of objects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from sam2_fast.ops.core.weights import Linear, Norm, Weights, linear, norm, repeated

EPS = 1e-5
"""Of the norms."""


@dataclass(frozen=True, eq=False)
class MemoryLayerWeights(Weights):
    """A pre-norm layer: self-attention, attention to memories of M channels, a ReLU MLP."""

    norm1: Norm = norm("C")
    self_q: Linear = linear("C", "C")
    self_k: Linear = linear("C", "C")
    self_v: Linear = linear("C", "C")
    self_out: Linear = linear("C", "C")
    norm2: Norm = norm("C")
    q: Linear = linear("C", "C")
    k: Linear = linear("C", "M")
    v: Linear = linear("C", "M")
    out: Linear = linear("C", "C")
    norm3: Norm = norm("C")
    linear1: Linear = linear("F", "C")
    linear2: Linear = linear("C", "F")


@dataclass(frozen=True, eq=False)
class MemoryAttentionWeights(Weights, root=True):
    """Layers of C channels over memories of M channels, and the norm after the last of them."""

    layers: tuple[MemoryLayerWeights, ...] = repeated(MemoryLayerWeights, C="C", M="M", F="F")
    norm: Norm = norm("C")

    @property
    def memory_dim(self) -> int:
        """Channels of a memory token."""
        return self.layers[0].k.weight.shape[1]

    @property
    def hidden(self) -> int:
        """Hidden channels of the MLPs."""
        return self.layers[0].linear1.weight.shape[0]


class Memories(NamedTuple):
    """Memories of B objects: indices of maps of N tokens, and pointer tokens.

    Objects may have different numbers of memories.
    """

    maps: list[Tensor]  # [N, M] each, of one dtype
    slots: list[int]  # indices into maps; those of object o are slots[first[o] : first[o + 1]]
    rows: list[int]  # for each slot its row of the temporal table
    first: list[int]  # [B + 1]
    pointers: Tensor  # [P, M]; of object o: pointers[first_pointer[o] : first_pointer[o + 1]]
    positions: Tensor  # [P, M]: added to the pointers for their keys
    first_pointer: list[int]  # [B + 1]
