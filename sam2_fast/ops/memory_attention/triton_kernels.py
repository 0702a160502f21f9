"""Memory attention on a GPU: launches depend on shapes alone, memories are named by a table."""

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
"""Keys of all layers are made in one launch while they take no more bytes, else layer by layer."""


def triton_attention(
    x: Tensor,
    weights: MemoryAttentionWeights,
    table: Tensor,
    memories: Memories,
    temporal: Tensor,
    place: Tensor,
    spans: int | None = None,
) -> Tensor:
    """Objects with memories of any length in one launch a layer; keys never lie in memory before
    they are rotated."""
    dtype = compute_dtype(weights.first_matrix)
    with torch.no_grad():
        # what the table names must outlive the launches
        maps = [m.to(dtype).contiguous() for m in memories.maps]
        pointers = memories.pointers.to(dtype).contiguous()
        positions = memories.positions.to(dtype).contiguous()
        slots, firsts = slots_of(memories, maps, pointers, positions)
        numbers = [number for slot in slots for number in slot] + firsts
        uploaded = upload_numbers(numbers, torch.int64, x.device)
        named = table_of(slots, firsts, uploaded)
        return memory_attention_at(x, weights, table, named, temporal, place, spans)


def slots_of(
    memories: Memories, maps: list[Tensor], pointers: Tensor, positions: Tensor
) -> tuple[list[Slot], list[int]]:
    """For `MemoryTable`: each slot's numbers, and where each object's keys begin."""
    slots: list[Slot] = []
    firsts = [0]
    size = pointers.element_size() * pointers.shape[1]
    for o in range(len(memories.first) - 1):
        start = firsts[-1]
        for place in range(memories.first[o], memories.first[o + 1]):
            tokens = maps[memories.slots[place]]
            slots.append(
                Slot(
                    tokens_address=tokens.data_ptr(),
                    first_key=start,
                    num_tokens=len(tokens),
                    temporal_row=memories.rows[place],
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
    place: Tensor,
    spans: int | None = None,
) -> Tensor:
    """`memory_attention` in Triton, for memories that a table names.

    Launches depend on shapes alone, so that they can be recorded. x: [1 or B, N, C] on a cuda
    device; spans: in how many parts keys are taken (None: by the size of the device).
    Returns [B, N, C].
    """
    from sam2_fast.kernels.attention import attend
    from sam2_fast.kernels.linear import RELU, fold_or_apply_norm, linear, linear_with_statistics
    from sam2_fast.kernels.memory_attention import memory_keys, project

    if (reason := tracing.recording_reason()) is not None:
        why = f"{reason}, and no recorder sees a Triton kernel"
        raise BackendError(f"memory_attention_at: {why}. Would run: memory_attention")
    dtype = compute_dtype(weights.first_matrix)
    dim, objects = x.shape[2], len(memories.firsts) - 1
    with torch.no_grad():
        layers, key_weight, key_bias = derive(
            weights, f"triton {dtype}", lambda: _prepared(weights, dtype)
        )
        place, temporal = place.to(dtype).contiguous(), temporal.to(dtype).contiguous()
        table = table.contiguous()
        memory_dim, firsts = place.shape[1], memories.firsts
        together = 1
        if memories.keys * dim * len(layers) * place.element_size() <= KEYS_BYTES:
            together = len(layers)
        keys = place.new_empty(together, memories.keys, dim)
        values = place.new_empty(memories.keys, memory_dim)
        y = x.detach().contiguous()
        for i, layer in enumerate(layers):
            q, k, v = project(y, layer["self"], table, rotated_parts=2)
            attended = attend(q, k, v, dim, spans=spans).view(-1, dim)
            tokens = y.view(-1, dim)
            y = linear(attended, layer["self_out"], residual=tokens, dtype=x.dtype).view(y.shape)
            (q,) = project(y, layer["query"], table, rotated_parts=1)
            if i % together == 0:
                some = slice(i, i + together)
                memory_keys(
                    memories.slots,
                    memories.most,
                    place,
                    temporal,
                    table,
                    key_weight[some],
                    key_bias[some],
                    keys,
                    values,
                    i == 0,
                )
            attended = attend(q, keys[i % together], values, dim, firsts, memories.longest, spans)
            # from here on objects that share a frame differ
            tokens = y.expand(objects, -1, -1).reshape(-1, dim)
            tokens, statistics = linear_with_statistics(
                attended.view(-1, memory_dim), layer["out"], residual=tokens, dtype=x.dtype
            )
            normed, statistics = fold_or_apply_norm(tokens, layer["linear1"], statistics)
            hidden = linear(normed, layer["linear1"], statistics, activation=RELU)
            y = linear(hidden, layer["linear2"], residual=tokens, dtype=x.dtype)
            y = y.view(objects, -1, dim)
        last = weights.norm
        return F.layer_norm(y, y.shape[-1:], last.weight.to(y.dtype), last.bias.to(y.dtype), EPS)


def _prepared(
    weights: MemoryAttentionWeights, dtype: torch.dtype
) -> tuple[list[dict[str, Any]], Tensor, Tensor]:
    """Each layer's linear layers as its Triton kernels take them, and the projections of the
    memories' keys of all layers.

    The memories' values are projected after they were attended to, in one product with the output
    projection.
    """
    from sam2_fast.kernels.linear import Layer, Norm, fold

    prepared = for_gpu(weights, dtype)
    layers = []
    for exact, w in zip(weights.layers, prepared.layers, strict=True):
        own = w.self_q, w.self_k, w.self_v
        qkv = torch.cat([x.weight for x in own]), torch.cat([x.bias for x in own])
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
