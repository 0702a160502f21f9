"""Memory attention as one op: tokens of a frame attend to themselves and to memories of objects."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from sam2_fast.ops.core.autocast import compute_dtype
from sam2_fast.ops.core.cache import derive, for_cpu
from sam2_fast.ops.core.native import native, no_triton
from sam2_fast.ops.core.op import Backend, Op
from sam2_fast.ops.core.registry import preferred
from sam2_fast.ops.core.requirements import (
    FLOATS,
    HALF,
    computes_in,
    fits,
    no_grad,
    on_one,
    plain,
    stored_in,
)
from sam2_fast.ops.memory_attention.reference import memory_attention_reference
from sam2_fast.ops.memory_attention.triton_kernels import triton_attention
from sam2_fast.ops.memory_attention.weights import (
    Memories as Memories,
)
from sam2_fast.ops.memory_attention.weights import (
    MemoryAttentionWeights as MemoryAttentionWeights,
)
from sam2_fast.proving.rules import FEW, Call, Rule

__all__ = ["Memories", "MemoryAttentionWeights", "memory_attention"]

MEMORIES = 7
"""Memory maps of an object in a proof, as many as the released models use."""


def memory_attention(
    x: Tensor,
    weights: MemoryAttentionWeights,
    table: Tensor,
    memories: Memories,
    temporal: Tensor,
    position: Tensor,
    *,
    backend: str = "auto",
) -> Tensor:
    """Tokens of B objects after all layers and the final norm: [B, N, C] in the dtype of x.

    A layer is self-attention, attention to the memories and a ReLU MLP, all pre-norm with
    residuals.
    x: [1 or B, N, C]; with 1, the B objects share the frame, and what does not depend on them is
        computed once.
    weights: of layers of C channels over memories of M channels.
    table: [2, N, C / 2] float32 from `rope_table`, by which queries and keys of maps are rotated.
    temporal: [T, M] and position: [N, M]: the keys of a map are projections of map + position +
        temporal[row], its values are projections of the map alone.
    backend: "auto", "triton", "cpu" or "torch".
    Under autocast products are computed in its dtype.
    Raises ValueError for shapes and tables that do not fit, BackendError if the named backend
    cannot run. Source: official `MemoryAttention`, one head.
    """
    _check(x, weights, table, memories, temporal, position)
    result: Tensor = _OP(backend, x, weights, table, memories, temporal, position)
    return result


def _check(
    x: Tensor,
    weights: MemoryAttentionWeights,
    table: Tensor,
    memories: Memories,
    temporal: Tensor,
    position: Tensor,
) -> None:
    if x.ndim != 3:
        raise ValueError(f"x: expected shape [1 or B, N, C], got {tuple(x.shape)}")
    images, tokens, dim = x.shape
    memory_dim = weights.memory_dim
    if dim != weights.norm.weight.shape[0]:
        expected = weights.norm.weight.shape[0]
        raise ValueError(f"x: expected the {expected} channels of the weights, got {dim}")
    if tuple(table.shape) != (2, tokens, dim // 2) or dim % 2:
        raise ValueError(
            f"table: expected shape {(2, tokens, dim // 2)} for x of shape {tuple(x.shape)}, "
            f"got {tuple(table.shape)}"
        )
    fitting = temporal.ndim == 2 and temporal.shape[1] == memory_dim <= dim
    if not fitting or tuple(position.shape) != (tokens, memory_dim):
        raise ValueError(
            f"temporal, position: expected [T, {memory_dim}], {(tokens, memory_dim)}, got "
            f"{tuple(temporal.shape)}, {tuple(position.shape)}"
        )
    objects = len(memories.first) - 1
    if images not in (1, objects):
        raise ValueError(f"x: expected 1 image or one for each of {objects} objects, got {images}")
    _check_memories(memories, objects, tokens, memory_dim, temporal.shape[0])


def _check_memories(
    memories: Memories, objects: int, tokens: int, memory_dim: int, rows: int
) -> None:
    if any(tuple(m.shape) != (tokens, memory_dim) for m in memories.maps):
        shapes = sorted({tuple(m.shape) for m in memories.maps})
        raise ValueError(f"maps: expected shape {(tokens, memory_dim)} each, got {shapes}")
    slots = len(memories.slots)
    if len(memories.rows) != slots or any(not 0 <= r < rows for r in memories.rows):
        raise ValueError(
            f"rows: expected a row of the {rows} of temporal for each of {slots} slots, got "
            f"{memories.rows}"
        )
    if any(not 0 <= s < len(memories.maps) for s in memories.slots):
        raise ValueError(
            f"slots: expected indices of {len(memories.maps)} maps, got {memories.slots}"
        )
    pointers, positions = tuple(memories.pointers.shape), tuple(memories.positions.shape)
    if pointers != positions or pointers[1:] != (memory_dim,):
        raise ValueError(
            f"pointers, positions: expected [P, {memory_dim}] both, got {pointers}, {positions}"
        )
    _check_offsets("first", memories.first, objects, slots)
    _check_offsets("first_pointer", memories.first_pointer, objects, len(memories.pointers))
    for o in range(objects):
        no_map = memories.first[o] == memories.first[o + 1]
        if no_map and memories.first_pointer[o] == memories.first_pointer[o + 1]:
            raise ValueError(
                f"memories: expected a map or a pointer for every object, got none for object {o}"
            )


def _check_offsets(name: str, first: Sequence[int], objects: int, end: int) -> None:
    if len(first) != objects + 1 or first[0] != 0 or first[-1] != end or sorted(first) != [*first]:
        raise ValueError(
            f"{name}: expected {objects + 1} ascending offsets from 0 to {end}, got {first}"
        )


def _native_attention(
    x: Tensor,
    weights: MemoryAttentionWeights,
    table: Tensor,
    memories: Memories,
    temporal: Tensor,
    position: Tensor,
    isa: str | None = None,
) -> Tensor:
    """Run the CPU kernel. isa: an older instruction set than this CPU's, for tests."""
    module = native()
    assert module is not None
    dtype = compute_dtype(weights.first_matrix)
    prepared = derive(
        weights, f"cpu {dtype}", lambda: module.MemoryAttentionWeights(for_cpu(weights, dtype))
    )

    def floats(t: Tensor) -> Tensor:
        return t.detach().to(torch.float32).contiguous()

    out = x.new_empty(len(memories.first) - 1, x.shape[1], x.shape[2])
    module.memory_attention(
        x.detach().contiguous(),
        prepared,
        floats(table),
        [m.detach().contiguous() for m in memories.maps],
        floats(temporal),
        floats(position),
        memories.slots,
        memories.rows,
        memories.first,
        floats(memories.pointers),
        floats(memories.positions),
        memories.first_pointer,
        out,
        torch.get_num_threads(),
        isa or module.cpu_isa(),
    )
    return out


def _refuses(
    x: Tensor, weights: MemoryAttentionWeights, table: Tensor, memories: Memories, *_: Tensor
) -> str | None:
    if len({m.dtype for m in memories.maps}) > 1:
        return "maps have several dtypes; all maps must have the same dtype"
    if weights.memory_dim % 2 or weights.hidden % 2:
        return (
            f"memories have {weights.memory_dim} channels, the MLPs {weights.hidden} hidden ones; "
            "supported: even numbers"
        )
    return None


def _triton_refuses(
    x: Tensor, weights: MemoryAttentionWeights, table: Tensor, memories: Memories, *_: Tensor
) -> str | None:
    if x.shape[2] in (16, 32, 64, 128, 256) and x.shape[1] > 0 and len(memories.first) >= 2:
        return None
    return (
        f"x has shape {tuple(x.shape)}, with {len(memories.first) - 1} objects; supported: 16, 32, "
        "64, 128 or 256 channels, at least one token and one object"
    )


def triton_refusal() -> str | None:
    """Why "auto" would not run memory attention in Triton on a GPU, or None.

    If there is a reason, `memory_attention_at` must not replace `memory_attention`.
    """
    chosen = preferred("memory_attention")
    if chosen is not None and chosen.run is triton_attention:
        return None
    reason = no_triton() or "the registry does not have its Triton implementation"
    backend = chosen.backend if chosen else "no backend"
    return f"memory attention runs in {backend}, not in Triton: {reason}"


def _flatten(
    x: Tensor, weights: MemoryAttentionWeights, table: Tensor, memories: Memories, *rest: Tensor
) -> tuple[Any, ...]:
    return x, weights.flatten(), table, *memories, *rest


def _unflatten(x: Tensor, weights: list[Tensor], table: Tensor, *rest: Any) -> tuple[Any, ...]:
    maps, slots, rows, first, pointers, positions, first_pointer, temporal, position = rest
    memories = Memories(maps, [*slots], [*rows], [*first], pointers, positions, [*first_pointer])
    named = MemoryAttentionWeights.unflatten(weights)
    return x, named, table, memories, temporal, position


def _result(x: Tensor, weights: list[Tensor], table: Tensor, *rest: Any) -> Tensor:
    first = rest[3]
    return x.new_empty(len(first) - 1, x.shape[1], x.shape[2])


def _configuration(x: Tensor, weights: MemoryAttentionWeights, *_: Any) -> Hashable:
    stored = weights.first_matrix.dtype
    sizes = len(weights.layers), weights.memory_dim, weights.hidden
    return attention_configuration((x.shape[1], x.shape[2]), x.dtype, stored, *sizes)


def attention_configuration(
    tokens: tuple[int, ...],
    dtype: torch.dtype,
    stored: torch.dtype,
    layers: int,
    memory_dim: int,
    hidden: int,
) -> Hashable:
    """What identifies a proof. tokens: (N, C); stored: dtype of weights; hidden: MLP channels."""
    return *tokens, layers, memory_dim, hidden, dtype, stored


def _sample(call: Call) -> Call:
    """The first one or two objects, each with at least `MEMORIES` maps, as later in a video."""
    x, weights, table, memories, temporal, position = call.arguments
    count = min(len(memories.first) - 1, FEW)
    joined = _joined(memories, [(o, True) for o in range(count)])
    return Call((x[:count], weights, table, joined, temporal, position), call.named)


def _more(call: Call) -> list[Call]:
    """One frame and two objects with different numbers of memories."""
    x, weights, table, memories, temporal, position = call.arguments
    two = _joined(memories, [(0, False), (0, True)])
    return [Call((x[:1], weights, table, two, temporal, position), call.named)]


def _joined(memories: Memories, objects: Sequence[tuple[int, bool]]) -> Memories:
    """Memories of some objects.

    objects: (index, filled) of each; filled: repeat its maps until it has at least `MEMORIES`.
    """
    slots: list[int] = []
    rows: list[int] = []
    ends, pointer_ends = [0], [0]
    pointers: list[slice] = []
    for index, filled in objects:
        own = slice(memories.first[index], memories.first[index + 1])
        times = 1
        if filled and own.stop > own.start:
            times = -(-MEMORIES // (own.stop - own.start))
        slots += list(memories.slots[own]) * times
        rows += list(memories.rows[own]) * times
        ends.append(len(slots))
        pointers.append(slice(memories.first_pointer[index], memories.first_pointer[index + 1]))
        pointer_ends.append(pointer_ends[-1] + pointers[-1].stop - pointers[-1].start)
    return memories._replace(
        slots=slots,
        rows=rows,
        first=ends,
        pointers=torch.cat([memories.pointers[part] for part in pointers]),
        positions=torch.cat([memories.positions[part] for part in pointers]),
        first_pointer=pointer_ends,
    )


_OP = Op(
    "memory_attention",
    schema="(Tensor x, Tensor[] weights, Tensor table, Tensor[] maps, int[] slots, int[] rows, "
    "int[] first, Tensor pointers, Tensor positions, int[] first_pointer, Tensor temporal, "
    "Tensor position) -> Tensor",
    weights=MemoryAttentionWeights,
    reference=memory_attention_reference,
    result=_result,
    flatten=_flatten,
    unflatten=_unflatten,
    backends=(
        Backend(
            "triton",
            triton_attention,
            (
                on_one("cuda"),
                plain,
                no_grad,
                computes_in(*HALF),
                fits(_triton_refuses),
            ),
            kernels=("row_statistics", "project", "gather", "keys", "attend", "merge", "linear"),
        ),
        Backend(
            "cpu",
            _native_attention,
            (
                on_one("cpu"),
                plain,
                no_grad,
                stored_in(*FLOATS),
                fits(_refuses),
            ),
        ),
    ),
    rule=Rule(_configuration, _sample, _more),
)
