"""The definition of memory attention, in torch."""

from __future__ import annotations

from collections import defaultdict

import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_fast.ops.core.layers import layer_norm, project
from sam2_fast.ops.core.weights import Linear
from sam2_fast.ops.memory_attention.weights import (
    EPS,
    Memories,
    MemoryAttentionWeights,
    MemoryLayerWeights,
)
from sam2_fast.ops.rope_attention import rope_attention


def memory_attention_reference(
    x: Tensor,
    weights: MemoryAttentionWeights,
    table: Tensor,
    memories: Memories,
    temporal: Tensor,
    position: Tensor,
) -> Tensor:
    """The definition, in torch. Objects with equal numbers of memories are one batch."""
    first, first_pointer = memories.first, memories.first_pointer
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for o in range(len(first) - 1):
        pointers = first_pointer[o + 1] - first_pointer[o]
        groups[first[o + 1] - first[o], pointers].append(o)
    results: dict[int, Tensor] = {}
    for (_, num_pointers), members in groups.items():
        memory, added = _stacked(memories, members, temporal, position, x.dtype)
        y = x if x.shape[0] == 1 else x[members]
        for layer in weights.layers:
            y = _layer(y, memory, memory + added, table, num_pointers, layer)
        y = layer_norm(y, weights.norm, EPS).expand(len(members), -1, -1)
        results |= dict(zip(members, y.unbind(), strict=True))
    return torch.stack([results[o] for o in sorted(results)]) if results else x[:0]


def _stacked(
    memories: Memories, members: list[int], temporal: Tensor, position: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Memories of objects with equal numbers of them, and what is added to them for their keys.

    Both are [members, maps * N + pointer tokens, M].
    """
    values, added = [], []
    for o in members:
        slots = slice(memories.first[o], memories.first[o + 1])
        pointers = slice(memories.first_pointer[o], memories.first_pointer[o + 1])
        maps = [memories.maps[slot].to(dtype) for slot in memories.slots[slots]]
        values.append(torch.cat([*maps, memories.pointers[pointers].to(dtype)]))
        positions = [(position + temporal[row]).to(dtype) for row in memories.rows[slots]]
        added.append(torch.cat([*positions, memories.positions[pointers].to(dtype)]))
    return torch.stack(values), torch.stack(added)


def _layer(
    x: Tensor,
    memory: Tensor,
    keys: Tensor,
    table: Tensor,
    num_unrotated: int,
    w: MemoryLayerWeights,
) -> Tensor:
    """One layer. x: [1 or B, N, C]; memory, keys: [B, K, M] -> [B, N, C]."""
    normed = layer_norm(x, w.norm1, EPS)
    self_projections = w.self_q, w.self_k, w.self_v, w.self_out
    x = x + attention(normed, normed, normed, table, 0, *self_projections)
    normed = layer_norm(x, w.norm2, EPS)
    x = x + attention(normed, keys, memory, table, num_unrotated, w.q, w.k, w.v, w.out)
    normed = layer_norm(x, w.norm3, EPS)
    return x + project(F.relu(project(normed, w.linear1)), w.linear2)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor,
    num_unrotated: int,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
) -> Tensor:
    """`rope_attention` between its projections. q: [1 or B, N, C]; k, v: [B, K, M] -> [B, N, C].

    If values have fewer channels than their projection, attention comes before the projection:
    rows of the softmax sum to 1, so the result is the same.
    """
    queries = project(q, q_proj).expand(k.shape[0], -1, -1)
    keys = project(k, k_proj)
    if v.shape[-1] < queries.shape[-1]:
        attended = rope_attention(queries, keys, v, table, num_unrotated)
        return project(project(attended, v_proj), out_proj)
    return project(
        rope_attention(queries, keys, project(v, v_proj), table, num_unrotated), out_proj
    )
