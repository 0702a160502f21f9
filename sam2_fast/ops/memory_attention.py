"""Memory attention as one op: a frame's tokens attend to themselves and to what each object remembers, layer after layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_fast.ops.memory_table import memory_attention_at, products_dtype, table_of
from sam2_fast.ops.native import is_plain, native, no_cpu, no_triton, wants_gradients
from sam2_fast.ops.native_weights import memory_attention_weights
from sam2_fast.ops.norm import layer_norm
from sam2_fast.ops.registry import Implementation, choose, execute, preferred, record_as, register
from sam2_fast.ops.rope_attention import rope_attention
from sam2_fast.ops.transfer import upload_numbers

_library = torch.library.Library("sam2_fast", "FRAGMENT")
_STORED = (torch.float32, torch.bfloat16, torch.float16)
_EPS = 1e-5  # of the norms
_LINEAR = ("self q", "self k", "self v", "self out", "q", "k", "v", "out", "linear1", "linear2")
WEIGHTS = tuple(
    f"{layer}.{part}" for layer in ("norm1", *_LINEAR[:4], "norm2", *_LINEAR[4:8], "norm3", *_LINEAR[8:]) for part in ("weight", "bias")
)
"""The 26 tensors of a layer, in the order of `weights`; after the last layer come weight and bias of the final norm."""


class Memories(NamedTuple):
    """What B objects remember: a table into maps of N tokens, and pointer tokens. Objects may remember differently much."""

    maps: list[Tensor]  # [N, m] each, of one dtype
    slots: list[int]  # which maps: object o's are slots[first[o] : first[o + 1]]
    rows: list[int]  # for each slot its row of the temporal table
    first: list[int]  # [B + 1]
    pointers: Tensor  # [P, m]: object o's are pointers[first_pointer[o] : first_pointer[o + 1]]
    positions: Tensor  # [P, m]: added to the pointers for their keys
    first_pointer: list[int]  # [B + 1]


def memory_attention(
    x: Tensor, weights: Sequence[Tensor], table: Tensor, memories: Memories, temporal: Tensor, place: Tensor, *, backend: str = "auto"
) -> Tensor:
    """Layers of self-attention, attention to the memories and a ReLU MLP, all pre-norm with residuals; then a norm.

    x: [1 or B, N, C]; with 1, the B objects share the frame, and what does not depend on them is computed once.
    weights: 26 L + 2 tensors of L layers, as `WEIGHTS` names them: linear layers [C, C], the memories' k and v [C, m], the MLP's
        [F, C] and [C, F]. table: [2, N, C / 2] float32 from `rope_table`, by which queries and keys of maps are turned.
    temporal: [T, m] and place: [N, m]: a map's keys come from map + place + temporal[row], its values from the map alone.
    backend: "auto", "triton", "cpu" or "torch". Returns [B, N, C] in the dtype of x; under autocast products are computed in its dtype.
    Raises ValueError for shapes and tables that do not fit, BackendError where the named backend cannot run.
    Source: official `MemoryAttention`, one head.
    """
    _check(x, weights, table, memories, temporal, place)
    tensors = (x, *weights, table, *memories.maps, memories.pointers, memories.positions, temporal, place)
    return execute("memory_attention", backend, tensors, x, weights, table, memories, temporal, place)


def _check(x: Tensor, weights: Sequence[Tensor], table: Tensor, memories: Memories, temporal: Tensor, place: Tensor) -> None:
    if x.ndim != 3:
        raise ValueError(f"x: expected shape [1 or B, N, C], got {tuple(x.shape)}")
    if len(weights) < 28 or len(weights) % 26 != 2:
        raise ValueError(f"weights: expected 26 tensors a layer and 2 of the last norm, got {len(weights)}")
    (images, tokens, dim), (hidden, _), narrow = x.shape, weights[22].shape, weights[14].shape[1]
    matrices = {"k.weight": (dim, narrow), "v.weight": (dim, narrow), "linear1.weight": (hidden, dim), "linear2.weight": (dim, hidden)}
    for i, weight in enumerate(weights[:-2]):
        name = WEIGHTS[i % 26]
        vector = (hidden if name == "linear1.bias" else dim,)
        expected = matrices.get(name, (dim, dim)) if name.endswith("weight") and not name.startswith("norm") else vector
        if tuple(weight.shape) != expected:
            raise ValueError(f"weights: layer {i // 26}, {name}: expected shape {expected}, got {tuple(weight.shape)}")
    if tuple(table.shape) != (2, tokens, dim // 2) or dim % 2:
        raise ValueError(f"table: expected shape {(2, tokens, dim // 2)} for x of shape {tuple(x.shape)}, got {tuple(table.shape)}")
    if temporal.ndim != 2 or temporal.shape[1] != narrow or tuple(place.shape) != (tokens, narrow) or narrow > dim:
        raise ValueError(f"temporal, place: expected [T, {narrow}], {(tokens, narrow)}, got {tuple(temporal.shape)}, {tuple(place.shape)}")
    objects = len(memories.first) - 1
    if images not in (1, objects):
        raise ValueError(f"x: expected 1 image or one for each of {objects} objects, got {images}")
    _check_table(memories, objects, tokens, narrow, temporal.shape[0])


def _check_table(memories: Memories, objects: int, tokens: int, narrow: int, rows: int) -> None:
    if any(tuple(m.shape) != (tokens, narrow) for m in memories.maps):
        raise ValueError(f"maps: expected shape {(tokens, narrow)} each, got {sorted({tuple(m.shape) for m in memories.maps})}")
    if len(memories.rows) != len(memories.slots) or any(not 0 <= r < rows for r in memories.rows):
        raise ValueError(f"rows: expected a row of the {rows} of temporal for each of {len(memories.slots)} slots, got {memories.rows}")
    if any(not 0 <= s < len(memories.maps) for s in memories.slots):
        raise ValueError(f"slots: expected places in {len(memories.maps)} maps, got {memories.slots}")
    if memories.pointers.shape != memories.positions.shape or memories.pointers.shape[1:] != (narrow,):
        shapes = tuple(memories.pointers.shape), tuple(memories.positions.shape)
        raise ValueError(f"pointers, positions: expected [P, {narrow}] both, got {shapes[0]}, {shapes[1]}")
    for name, first, end in (
        ("first", memories.first, len(memories.slots)),
        ("first_pointer", memories.first_pointer, len(memories.pointers)),
    ):
        if len(first) != objects + 1 or first[0] != 0 or first[-1] != end or sorted(first) != list(first):
            raise ValueError(f"{name}: expected {objects + 1} ascending offsets from 0 to {end}, got {first}")
    for o in range(objects):
        if memories.first[o] == memories.first[o + 1] and memories.first_pointer[o] == memories.first_pointer[o + 1]:
            raise ValueError(f"memories: expected a map or a pointer for every object, got none for object {o}")


def memory_attention_reference(
    x: Tensor, weights: Sequence[Tensor], table: Tensor, memories: Memories, temporal: Tensor, place: Tensor
) -> Tensor:
    """The definition, in torch. Objects that remember equally much go through the layers together."""
    first, first_pointer = memories.first, memories.first_pointer
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for o in range(len(first) - 1):
        groups[first[o + 1] - first[o], first_pointer[o + 1] - first_pointer[o]].append(o)
    found: dict[int, Tensor] = {}
    for (_, loose), members in groups.items():
        values, keys = [], []
        for o in members:
            mine = [memories.maps[s].to(x.dtype) for s in memories.slots[first[o] : first[o + 1]]]
            pointers = slice(first_pointer[o], first_pointer[o + 1])
            values.append(torch.cat([*mine, memories.pointers[pointers].to(x.dtype)]))
            added = [(place + temporal[row]).to(x.dtype) for row in memories.rows[first[o] : first[o + 1]]]
            keys.append(torch.cat([*added, memories.positions[pointers].to(x.dtype)]))
        memory = torch.stack(values)  # [members, maps * N + loose, m]
        y = x if x.shape[0] == 1 else x[members]
        for i in range(len(weights) // 26):
            y = _layer(y, memory, memory + torch.stack(keys), table, loose, weights[26 * i : 26 * i + 26])
        y = _norm(y, weights[-2:]).expand(len(members), -1, -1)
        found |= dict(zip(members, y.unbind(), strict=True))
    return torch.stack([found[o] for o in sorted(found)]) if found else x[:0]


def _norm(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    return layer_norm(x, weights[0], weights[1], _EPS)


def _layer(x: Tensor, memory: Tensor, keys: Tensor, table: Tensor, num_unrotated: int, weights: Sequence[Tensor]) -> Tensor:
    """x: [1 or B, N, C]; memory, keys: [B, K, m] -> [B, N, C]."""
    normed = _norm(x, weights[:2])
    x = x + attention(normed, normed, normed, table, 0, weights[2:10])
    normed = _norm(x, weights[10:12])
    x = x + attention(normed, keys, memory, table, num_unrotated, weights[12:20])
    normed = _norm(x, weights[20:22])
    return x + F.linear(F.relu(F.linear(normed, *weights[22:24])), *weights[24:26])


def attention(q: Tensor, k: Tensor, v: Tensor, table: Tensor, num_unrotated: int, weights: Sequence[Tensor]) -> Tensor:
    """`rope_attention` between its projections. q: [1 or B, N, C]; k, v: [B, K, m]; weights of q, k, v and out -> [B, N, C].

    Rows of the softmax sum to 1, so values narrower than their projection are attended to first and projected after.
    """
    q, k = F.linear(q, *weights[:2]).expand(k.shape[0], -1, -1), F.linear(k, *weights[2:4])
    if v.shape[-1] < q.shape[-1]:
        return F.linear(F.linear(rope_attention(q, k, v, table, num_unrotated), *weights[4:6]), *weights[6:])
    return F.linear(rope_attention(q, k, F.linear(v, *weights[4:6]), table, num_unrotated), *weights[6:])


def _native_attention(
    x: Tensor,
    weights: Sequence[Tensor],
    table: Tensor,
    memories: Memories,
    temporal: Tensor,
    place: Tensor,
    isa: str | None = None,
) -> Tensor:
    """`isa`: run with a narrower instruction set than this CPU's, for tests."""
    module = native()
    assert module is not None
    dtype = products_dtype(weights[2])

    def wide(t: Tensor) -> Tensor:
        return t.detach().to(torch.float32).contiguous()

    given = [w.detach().to(dtype).contiguous() if w.ndim == 2 else wide(w) for w in weights]
    maps = [m.detach().contiguous() for m in memories.maps]
    out = torch.empty(len(memories.first) - 1, x.shape[1], x.shape[2], dtype=x.dtype, device=x.device)
    held = module.MemoryAttentionWeights(memory_attention_weights(given))
    module.memory_attention(
        x.detach().contiguous(), held, wide(table), maps, wide(temporal), wide(place), memories.slots, memories.rows, memories.first,
        wide(memories.pointers), wide(memories.positions), memories.first_pointer, out, torch.get_num_threads(), isa or module.cpu_isa(),
    )  # fmt: skip
    return out


def _triton_attention(
    x: Tensor, weights: Sequence[Tensor], table: Tensor, memories: Memories, temporal: Tensor, place: Tensor, spans: int | None = None
) -> Tensor:
    """Objects with memories of any length in one launch a layer; keys never lie in memory before they are turned."""
    dtype = products_dtype(weights[2])
    with torch.no_grad():
        maps = [m.to(dtype).contiguous() for m in memories.maps]  # what the table names must outlive the launches
        loose = memories.pointers.to(dtype).contiguous(), memories.positions.to(dtype).contiguous()
        slots, firsts = _slots(memories, maps, *loose)
        numbers = upload_numbers([n for slot in slots for n in slot] + firsts, torch.int64, x.device)
        return memory_attention_at(x, weights, table, table_of(slots, firsts, numbers), temporal, place, spans)


def _slots(memories: Memories, maps: list[Tensor], pointers: Tensor, positions: Tensor) -> tuple[list[list[int]], list[int]]:
    """For `MemoryTable`: where each slot's tokens lie and go, and where each object's keys begin."""
    slots: list[list[int]] = []
    firsts, size = [0], pointers.element_size() * pointers.shape[1]
    for o in range(len(memories.first) - 1):
        start = firsts[-1]
        for place in range(memories.first[o], memories.first[o + 1]):
            tokens = maps[memories.slots[place]]
            slots.append([tokens.data_ptr(), 0, start, len(tokens), memories.rows[place]])
            start += len(tokens)
        begin, end = memories.first_pointer[o], memories.first_pointer[o + 1]
        if end > begin:
            slots.append([pointers.data_ptr() + begin * size, positions.data_ptr() + begin * size, start, end - begin, 0])
            start += end - begin
        firsts.append(start)
    return slots, firsts


def _refuses(x: Tensor, weights: Sequence[Tensor], table: Tensor, memories: Memories, temporal: Tensor, place: Tensor) -> str | None:
    tensors = (x, *weights, table, *memories.maps, memories.pointers, memories.positions, temporal, place)
    if any(t.device.type != "cpu" for t in tensors):
        return f"tensors are on {', '.join(sorted({str(t.device) for t in tensors}))}, it takes cpu tensors"
    if not is_plain(*tensors):
        return f"tensors are {', '.join(sorted({type(t).__name__ for t in tensors}))}, it takes plain tensors"
    if wants_gradients(*tensors):
        return "gradients are wanted, it has none"
    if any(t.dtype not in _STORED for t in tensors) or len({w.dtype for w in weights if w.ndim == 2}) > 1:
        return f"dtypes are {', '.join(sorted({str(t.dtype) for t in tensors}))}, it takes float32, bfloat16 or float16, all matrices alike"
    if len({m.dtype for m in memories.maps}) > 1:
        return "maps have several dtypes, it takes one"
    if weights[14].shape[1] % 2 or weights[22].shape[0] % 2:
        return f"memories of {weights[14].shape[1]} and {weights[22].shape[0]} hidden channels, it takes even widths"
    return None


def _triton_refuses(x: Tensor, weights: Sequence[Tensor], table: Tensor, memories: Memories, temporal: Tensor, place: Tensor) -> str | None:
    tensors = (x, *weights, table, *memories.maps, memories.pointers, memories.positions, temporal, place)
    if any(t.device.type != "cuda" for t in tensors) or len({t.device for t in tensors}) > 1:
        return f"tensors are on {', '.join(sorted({str(t.device) for t in tensors}))}, it takes those of one cuda device"
    if not is_plain(*tensors):
        return f"tensors are {', '.join(sorted({type(t).__name__ for t in tensors}))}, it takes plain tensors"
    if wants_gradients(*tensors):
        return "gradients are wanted, it has none"
    dtype = products_dtype(weights[2])
    if dtype not in (torch.bfloat16, torch.float16):
        return f"products are in {dtype}, it takes bfloat16 or float16"
    if x.shape[2] not in (16, 32, 64, 128, 256) or x.shape[1] == 0 or len(memories.first) < 2:
        return f"x is {tuple(x.shape)} for {len(memories.first) - 1} objects, it takes 16, 32 ... 256 channels, one object or more"
    return None


_TRITON = Implementation("memory_attention", "triton", _triton_attention, _triton_refuses)
register(_TRITON, no_triton)
register(Implementation("memory_attention", "cpu", _native_attention, _refuses), no_cpu)
register(Implementation("memory_attention", "torch", memory_attention_reference, lambda *_: None), lambda: None)


def table_left_out() -> str | None:
    """Why the registry would not run this module's Triton kernels on a GPU, in which case
    `memory_attention_at` must not stand for `memory_attention`; None where it would."""
    chosen = preferred("memory_attention")
    if chosen is _TRITON:
        return None
    missing = no_triton() or "it is left out of the registry or replaced there"
    return f"memory attention runs in {chosen.backend if chosen else 'no backend'}, not in Triton: {missing}"


def _dispatch(
    x: Tensor, weights: list[Tensor], table: Tensor, maps: list[Tensor], slots: list[int], rows: list[int], first: list[int],
    pointers: Tensor, positions: Tensor, first_pointer: list[int], temporal: Tensor, place: Tensor,
) -> Tensor:  # fmt: skip
    memories = Memories(maps, list(slots), list(rows), list(first), pointers, positions, list(first_pointer))
    arguments = (x, weights, table, memories, temporal, place)
    return choose("memory_attention", "auto", *arguments).run(*arguments).contiguous()


_library.define(
    "memory_attention(Tensor x, Tensor[] weights, Tensor table, Tensor[] maps, int[] slots, int[] rows, int[] first, Tensor pointers, "
    "Tensor positions, int[] first_pointer, Tensor temporal, Tensor place) -> Tensor"
)
_library.impl("memory_attention", _dispatch, "CompositeExplicitAutograd")
record_as("memory_attention", lambda x, w, table, m, *rest: torch.ops.sam2_fast.memory_attention(x, list(w), table, *m, *rest))


@torch.library.register_fake("sam2_fast::memory_attention", lib=_library)
def _(
    x: Tensor, weights: list[Tensor], table: Tensor, maps: list[Tensor], slots: list[int], rows: list[int], first: list[int],
    pointers: Tensor, positions: Tensor, first_pointer: list[int], temporal: Tensor, place: Tensor,
) -> Tensor:  # fmt: skip
    return x.new_empty(len(first) - 1, x.shape[1], x.shape[2])
