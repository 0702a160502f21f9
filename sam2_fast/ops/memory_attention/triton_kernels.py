"""Memory attention in Triton. Launches depend on shapes only; a table has the memories."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_fast.kernels.memory_slots import Slot
from sam2_fast.ops.core import tracing
from sam2_fast.ops.core.autocast import compute_dtype
from sam2_fast.ops.core.cache import derive, for_gpu
from sam2_fast.ops.core.registry import BackendError
from sam2_fast.ops.core.transfer import upload_numbers
from sam2_fast.ops.memory_attention.table import MemoryTable, table_of
from sam2_fast.ops.memory_attention.weights import EPS, Memories, MemoryAttentionWeights

KEYS_BYTES = 128 << 20
"""Up to this size, keys of all layers are computed in one launch, else layer by layer."""


def triton_attention(
    x: Tensor,
    weights: MemoryAttentionWeights,
    table: Tensor,
    memories: Memories,
    temporal: Tensor,
    position: Tensor,
    spans: int | None = None,
) -> Tensor:
    """`memory_attention` in Triton. spans: see `memory_attention_at`.

    One launch per layer handles all objects, whatever their numbers of memories. Keys are rotated
    before they are stored.
    """
    dtype = compute_dtype(weights.first_matrix)
    with torch.no_grad():
        # the tensors in the table must outlive the launches
        maps = [m.to(dtype).contiguous() for m in memories.maps]
        pointers = memories.pointers.to(dtype).contiguous()
        positions = memories.positions.to(dtype).contiguous()
        slots, firsts = slots_of(memories, maps, pointers, positions)
        numbers = [number for slot in slots for number in slot] + firsts
        uploaded = upload_numbers(numbers, torch.int64, x.device)
        memory_table = table_of(slots, firsts, uploaded)
        return memory_attention_at(x, weights, table, memory_table, temporal, position, spans)


def slots_of(
    memories: Memories, maps: list[Tensor], pointers: Tensor, positions: Tensor
) -> tuple[list[Slot], list[int]]:
    """The slots of a `MemoryTable`, and the first key of each object."""
    slots: list[Slot] = []
    firsts = [0]
    size = pointers.element_size() * pointers.shape[1]
    for o in range(len(memories.first) - 1):
        start = firsts[-1]
        for index in range(memories.first[o], memories.first[o + 1]):
            tokens = maps[memories.slots[index]]
            slots.append(
                Slot(
                    tokens_address=tokens.data_ptr(),
                    first_key=start,
                    num_tokens=len(tokens),
                    temporal_row=memories.rows[index],
                )
            )
            start += len(tokens)
        begin, end = memories.first_pointer[o], memories.first_pointer[o + 1]
        if end > begin:
            slots.append(
                Slot(
                    tokens_address=pointers.data_ptr() + begin * size,
                    added_address=positions.data_ptr() + begin * size,
                    first_key=start,
                    num_tokens=end - begin,
                )
            )
            start += end - begin
        firsts.append(start)
    return slots, firsts


def memory_attention_at(
    x: Tensor,
    weights: MemoryAttentionWeights,
    table: Tensor,
    memories: MemoryTable,
    temporal: Tensor,
    position: Tensor,
    spans: int | None = None,
) -> Tensor:
    """`memory_attention` in Triton, for memories in a table.

    Launches depend on shapes only, so that they can be captured in a CUDA graph. x: [1 or B, N, C]
    on a CUDA device; spans: number of parts that keys are split into (None: by the size of the
    device).
    Returns [B, N, C].
    """
    from sam2_fast.kernels.attention import attend
    from sam2_fast.kernels.linear import RELU, fold_or_apply_norm, linear, linear_with_statistics
    from sam2_fast.kernels.memory_attention import memory_keys, project

    if (reason := tracing.recording_reason()) is not None:
        raise BackendError(
            f"memory_attention_at: {reason}, and recorders cannot see Triton kernels. Would run: "
            "memory_attention"
        )
    dtype = compute_dtype(weights.first_matrix)
    dim = x.shape[2]
    objects = len(memories.firsts) - 1
    with torch.no_grad():
        layers, key_weight, key_bias = derive(
            weights, f"triton {dtype}", lambda: _prepared(weights, dtype)
        )
        position = position.to(dtype).contiguous()
        temporal = temporal.to(dtype).contiguous()
        table = table.contiguous()
        memory_dim = position.shape[1]
        firsts = memories.firsts
        group = 1  # layers that share one launch for their keys
        if memories.keys * dim * len(layers) * position.element_size() <= KEYS_BYTES:
            group = len(layers)
        keys = position.new_empty(group, memories.keys, dim)
        values = position.new_empty(memories.keys, memory_dim)
        y = x.detach().contiguous()
        for i, layer in enumerate(layers):
            q, k, v = project(y, layer["self"], table, rotated_parts=2)
            attended = attend(q, k, v, dim, spans=spans).view(-1, dim)
            tokens = y.view(-1, dim)
            y = linear(attended, layer["self_out"], residual=tokens, dtype=x.dtype).view(y.shape)
            (q,) = project(y, layer["query"], table, rotated_parts=1)
            if i % group == 0:
                group_slice = slice(i, i + group)
                memory_keys(
                    memories.slots,
                    memories.most,
                    position,
                    temporal,
                    table,
                    key_weight[group_slice],
                    key_bias[group_slice],
                    keys,
                    values,
                    i == 0,
                )
            attended = attend(q, keys[i % group], values, dim, firsts, memories.longest, spans)
            # from here on, tokens of objects that share a frame differ
            tokens = y.expand(objects, -1, -1).reshape(-1, dim)
            tokens, statistics = linear_with_statistics(
                attended.view(-1, memory_dim), layer["out"], residual=tokens, dtype=x.dtype
            )
            normed, statistics = fold_or_apply_norm(tokens, layer["linear1"], statistics)
            hidden = linear(normed, layer["linear1"], statistics, activation=RELU)
            y = linear(hidden, layer["linear2"], residual=tokens, dtype=x.dtype)
            y = y.view(objects, -1, dim)
        norm = weights.norm
        return F.layer_norm(y, y.shape[-1:], norm.weight.to(y.dtype), norm.bias.to(y.dtype), EPS)


def _prepared(
    weights: MemoryAttentionWeights, dtype: torch.dtype
) -> tuple[list[dict[str, Any]], Tensor, Tensor]:
    """The linear layers of each layer as the Triton kernels read them, and the key projections.

    The key projections of memories are stacked over the layers. Values of memories are projected
    after attention, in one product with the output projection.
    """
    from sam2_fast.kernels.linear import Layer, Norm, fold

    prepared = for_gpu(weights, dtype)
    layers = []
    for exact, w in zip(weights.layers, prepared.layers, strict=True):
        parts = w.self_q, w.self_k, w.self_v
        qkv = torch.cat([x.weight for x in parts]), torch.cat([x.bias for x in parts])
        value, out = exact.v, exact.out
        value_weight, out_weight = value.weight.detach().float(), out.weight.detach().float()
        bias = out_weight @ value.bias.detach().float() + out.bias.detach().float()
        layers.append(
            {
                "self": Layer(*qkv, Norm(w.norm1.weight, w.norm1.bias, EPS)),
                "self_out": Layer(w.self_out.weight, w.self_out.bias),
                "query": Layer(w.q.weight, w.q.bias, Norm(w.norm2.weight, w.norm2.bias, EPS)),
                "out": Layer((out_weight @ value_weight).to(dtype), bias),
                "linear1": fold(
                    w.linear1.weight, w.linear1.bias, Norm(w.norm3.weight, w.norm3.bias, EPS)
                ),
                "linear2": Layer(w.linear2.weight, w.linear2.bias),
            }
        )
    key_weight = torch.stack([w.k.weight for w in prepared.layers])
    return layers, key_weight, torch.stack([w.k.bias for w in prepared.layers])
