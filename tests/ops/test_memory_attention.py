"""Memory attention: errors of every instruction set against the definition in float64, and the
behaviour of the public function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_fast.config import Sam2Config
from sam2_fast.model.memory_attention import MemoryAttention
from sam2_fast.ops.core.cache import for_cpu
from sam2_fast.ops.core.layout import Leaf
from sam2_fast.ops.core.native import native
from sam2_fast.ops.core.weights import Linear
from sam2_fast.ops.memory_attention import (
    Memories,
    MemoryAttentionWeights,
    _native_attention,
    memory_attention,
)
from sam2_fast.ops.memory_attention.reference import attention, memory_attention_reference
from sam2_fast.ops.rope_attention import rope_attention_reference, rope_table
from tests.ops import cases
from tests.ops.cases import with_matrix_dtype

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
RAGGED = ((2, 3), (0, 4), (3, 0), (2, 3))
"""Numbers of maps and of pointer tokens of four objects."""


class Inputs(NamedTuple):
    """Arguments of the op."""

    x: Tensor
    weights: MemoryAttentionWeights
    table: Tensor
    memories: Memories
    temporal: Tensor
    position: Tensor


def case(
    side: int = 6,
    objects: tuple[tuple[int, int], ...] = RAGGED,
    images: int = 1,
    dim: int = 16,
    memory_dim: int = 8,
    hidden: int = 40,
    layers: int = 2,
    scale: float = 1.0,
) -> Inputs:
    """Arguments of the op. A large `scale` makes attention peaked."""
    generator = torch.Generator().manual_seed(side * 100 + len(objects))

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def weight(leaf: Leaf, shape: tuple[int, ...]) -> Tensor:
        if leaf.name.startswith("norm."):
            return torch.empty(shape)  # replaced below
        std = shape[-1] ** -0.5 if leaf.matrix else 0.3
        if leaf.name.endswith(("].q.weight", "self_q.weight")):
            std *= scale
        return random(*shape) * std

    tokens = side * side
    weights = MemoryAttentionWeights.build(weight, count=layers, C=dim, M=memory_dim, F=hidden)
    counts = [maps for maps, _ in objects]
    first = [sum(counts[:i]) for i in range(len(objects) + 1)]
    first_pointer = [sum(p for _, p in objects[:i]) for i in range(len(objects) + 1)]
    memories = Memories(
        maps=[random(tokens, memory_dim) for _ in range(first[-1])],
        slots=[(5 * i) % max(first[-1], 1) for i in range(first[-1])],  # not in ascending order
        rows=[i % 3 for i in range(first[-1])],
        first=first,
        pointers=random(first_pointer[-1], memory_dim),
        positions=random(first_pointer[-1], memory_dim),
        first_pointer=first_pointer,
    )
    weights = weights.with_tensors({"norm.weight": random(dim), "norm.bias": random(dim)})
    return Inputs(
        random(images, tokens, dim),
        weights,
        rope_table(dim, side),
        memories,
        random(3, memory_dim),
        random(tokens, memory_dim),
    )


def cast(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    """`inputs` in `dtype`, apart from the table of angles, which has at least float32."""
    m = inputs.memories
    memories = m._replace(
        maps=[x.to(dtype) for x in m.maps],
        pointers=m.pointers.to(dtype),
        positions=m.positions.to(dtype),
    )
    return Inputs(
        inputs.x.to(dtype),
        inputs.weights.to(dtype),
        inputs.table.to(torch.promote_types(dtype, torch.float32)),
        memories,
        inputs.temporal.to(dtype),
        inputs.position.to(dtype),
    )


def native_output(inputs: Inputs, isa: str, threads: int = 2) -> Tensor:
    """The output of the native kernel, written to memory that is full of NaN."""
    m = inputs.memories
    module = native()
    assert module is not None
    out = torch.full((len(m.first) - 1, *inputs.x.shape[1:]), torch.nan, dtype=inputs.x.dtype)
    weights = module.MemoryAttentionWeights(
        for_cpu(inputs.weights, inputs.weights.layers[0].q.weight.dtype)
    )
    module.memory_attention(
        inputs.x,
        weights,
        inputs.table,
        m.maps,
        inputs.temporal.float(),
        inputs.position.float(),
        m.slots,
        m.rows,
        m.first,
        m.pointers.float(),
        m.positions.float(),
        m.first_pointer,
        out,
        threads,
        isa,
    )
    return out


def error(output: Tensor, exact: Tensor) -> float:
    """Root mean square error."""
    return (output.double() - exact).square().mean().sqrt().item()


@pytest.mark.proves("reference", "memory_attention:cpu")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [1.0, 8.0], ids="scale {}".format)
@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"side": 8, "objects": ((7, 16),), "dim": 64, "memory_dim": 16, "hidden": 192},
        {"side": 9, "images": 4},
        {"side": 1, "objects": ((1, 1),)},
        {"side": 11, "objects": ((1, 130),), "layers": 1},
        {"side": 4, "dim": 16, "memory_dim": 16, "layers": 3},
        {"side": 65, "objects": ((1, 1),), "dim": 4, "memory_dim": 2, "hidden": 4, "layers": 1},
    ],
    ids=[
        "ragged",
        "square",
        "one image per object",
        "one token",
        "many pointers",
        "memory_dim equal to dim",
        "more than one window of keys",
    ],
)
def test_errs_at_most_twice_as_much_as_torch(
    isa: str, dtype: torch.dtype, scale: float, shape: dict[str, Any]
) -> None:
    inputs = cast(case(**shape, scale=scale), dtype)
    exact = memory_attention_reference(*cast(inputs, torch.float64))
    torch_error = error(memory_attention_reference(*inputs), exact)
    limit = 2 * max(torch_error, error(exact.to(dtype), exact))
    kernel_error = error(native_output(inputs, isa), exact)
    assert kernel_error <= limit, (kernel_error, torch_error)


def test_results_do_not_depend_on_threads_or_the_run_or_the_other_objects(isa: str) -> None:
    inputs = case(side=9)
    expected = native_output(inputs, isa, threads=1)
    for threads in (1, 2, 3, 7):
        assert torch.equal(native_output(inputs, isa, threads), expected)
    one_image_per_object = inputs._replace(x=inputs.x.expand(4, -1, -1).contiguous())
    assert torch.equal(native_output(one_image_per_object, isa), expected)
    m = inputs.memories
    third_object = m._replace(
        slots=m.slots[2:5],
        rows=m.rows[2:5],
        first=[0, 3],
        pointers=m.pointers[:0],
        positions=m.positions[:0],
        first_pointer=[0, 0],
    )
    assert torch.equal(native_output(inputs._replace(memories=third_object), isa), expected[2:3])


def test_nan_affects_only_its_object(isa: str) -> None:
    inputs = case()
    clean = native_output(inputs, isa)
    inputs.memories.pointers[5, 2] = torch.nan  # a pointer of the second object
    output = native_output(inputs, isa)
    assert output[1].isnan().all() and torch.equal(output[[0, 2, 3]], clean[[0, 2, 3]])


def with_maps(inputs: Inputs, maps: list[Tensor]) -> Inputs:
    return inputs._replace(memories=inputs.memories._replace(maps=maps))


def test_maps_may_be_stored_in_another_dtype(isa: str) -> None:
    inputs = case()
    maps = [m.bfloat16() for m in inputs.memories.maps]
    in_float32 = [m.float() for m in maps]
    assert torch.equal(
        native_output(with_maps(inputs, maps), isa),
        native_output(with_maps(inputs, in_float32), isa),
    )


def test_autocast_of_the_caller_sets_the_compute_dtype() -> None:
    inputs = case()
    with torch.autocast("cpu", torch.bfloat16):
        output = memory_attention(*inputs)
    expected = memory_attention(*inputs._replace(weights=with_matrix_dtype(inputs.weights)))
    assert output.dtype == torch.float32 and torch.equal(output, expected)


def test_values_projected_after_attention_equal_values_projected_before() -> None:
    """Rows of the softmax sum to 1: out(P (M W' + b)) = out((P M) W' + b)."""
    q, memory = torch.randn(2, 9, 32).double(), torch.randn(2, 20, 8).double()
    table = rope_table(32, 3).double()
    q_proj, k_proj, v_proj, out = (
        Linear(torch.randn(32, n).double() * 0.3, torch.randn(32).double() * 0.3)
        for n in (32, 8, 8, 32)
    )
    projected_after = attention(q, memory, memory, table, 2, q_proj, k_proj, v_proj, out)
    projections = ((q, q_proj), (memory, k_proj), (memory, v_proj))
    queries, keys, values = (F.linear(x, layer.weight, layer.bias) for x, layer in projections)
    attended = rope_attention_reference(queries, keys, values, table, 2)
    projected_before = F.linear(attended, out.weight, out.bias)
    assert (projected_after - projected_before).abs().max() < 1e-13


def test_gradients_flow_through_the_modules() -> None:
    config = Sam2Config(
        embed_dim=16, stages=(1, 1, 1, 1), global_blocks=(), image_size=64, memory_layers=2
    )
    model = MemoryAttention.from_config(config)
    memory, position = torch.randn(2, 20, 1, 64)
    output = model(torch.randn(16, 1, 256), memory, torch.randn(16, 1, 256), position, 4)
    output.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_the_private_function_accepts_an_instruction_set() -> None:
    assert _native_attention(*case(), isa="portable").shape == (4, 36, 16)


def memory_attention_case() -> cases.Case:
    x, weights, table, memories, temporal, position = case(
        side=3, objects=((1, 4), (2, 0)), layers=1
    )
    count = len(memories.maps)

    def run(
        x: Tensor,
        table: Tensor,
        pointers: Tensor,
        positions: Tensor,
        temporal: Tensor,
        position: Tensor,
        *maps_and_weights: Tensor,
        **kwargs: Any,
    ) -> Tensor:
        maps = list(maps_and_weights[:count])
        new_memories = memories._replace(maps=maps, pointers=pointers, positions=positions)
        weights = MemoryAttentionWeights.unflatten(maps_and_weights[count:])
        return memory_attention(x, weights, table, new_memories, temporal, position, **kwargs)

    return cases.case_of(
        run,
        x,
        table,
        memories.pointers,
        memories.positions,
        temporal,
        position,
        *memories.maps,
        *weights.flatten(),
    )


RECORDED: dict[str, Callable[[], cases.Case]] = {"memory_attention": memory_attention_case}
