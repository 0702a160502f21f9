"""Memory attention: every instruction set against the definition in float64, and what the public
function promises.
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
from sam2_fast.ops.core.registry import BackendError
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
from tests.ops.cases import changed, narrowed

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
RAGGED = ((2, 3), (0, 4), (3, 0), (2, 3))  # maps and pointer tokens of four objects


class Case(NamedTuple):
    """Arguments of the op."""

    x: Tensor
    weights: MemoryAttentionWeights
    table: Tensor
    memories: Memories
    temporal: Tensor
    place: Tensor


def case(
    side: int = 6,
    objects: tuple[tuple[int, int], ...] = RAGGED,
    images: int = 1,
    dim: int = 16,
    narrow: int = 8,
    hidden: int = 40,
    layers: int = 2,
    scale: float = 1.0,
) -> Case:
    """`scale` makes peaked attention."""
    generator = torch.Generator().manual_seed(side * 100 + len(objects))

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def weight(leaf: Leaf, shape: tuple[int, ...]) -> Tensor:
        if leaf.name.startswith("norm."):
            return torch.empty(shape)  # drawn last
        spread = shape[-1] ** -0.5 if leaf.matrix else 0.3
        return (
            random(*shape)
            * spread
            * (scale if leaf.name.endswith(("].q.weight", "self_q.weight")) else 1.0)
        )

    tokens = side * side
    weights = MemoryAttentionWeights.build(weight, count=layers, C=dim, M=narrow, F=hidden)
    counts = [maps for maps, _ in objects]
    first = [sum(counts[:i]) for i in range(len(objects) + 1)]
    pointers = [sum(p for _, p in objects[:i]) for i in range(len(objects) + 1)]
    slots = [(5 * i) % max(first[-1], 1) for i in range(first[-1])]  # out of order
    rows = [i % 3 for i in range(first[-1])]
    maps = [random(tokens, narrow) for _ in range(first[-1])]
    memories = Memories(
        maps,
        slots,
        rows,
        first,
        random(pointers[-1], narrow),
        random(pointers[-1], narrow),
        pointers,
    )
    weights = weights.with_tensors({"norm.weight": random(dim), "norm.bias": random(dim)})
    return Case(
        random(images, tokens, dim),
        weights,
        rope_table(dim, side),
        memories,
        random(3, narrow),
        random(tokens, narrow),
    )


def cast(given: Case, dtype: torch.dtype) -> Case:
    """All but the table of angles in another dtype."""
    m = given.memories
    memories = m._replace(
        maps=[x.to(dtype) for x in m.maps],
        pointers=m.pointers.to(dtype),
        positions=m.positions.to(dtype),
    )
    table = given.table.to(torch.promote_types(dtype, torch.float32))
    weights = given.weights.to(dtype)
    return Case(
        given.x.to(dtype), weights, table, memories, given.temporal.to(dtype), given.place.to(dtype)
    )


def poisoned(given: Case, isa: str, threads: int = 2) -> Tensor:
    """The kernel itself, into memory full of NaN."""
    m, module = given.memories, native()
    assert module is not None
    out = torch.full((len(m.first) - 1, *given.x.shape[1:]), torch.nan, dtype=given.x.dtype)
    weights = module.MemoryAttentionWeights(
        for_cpu(given.weights, given.weights.layers[0].q.weight.dtype)
    )
    module.memory_attention(
        given.x,
        weights,
        given.table,
        m.maps,
        given.temporal.float(),
        given.place.float(),
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


def error(found: Tensor, exact: Tensor) -> float:
    return (found.double() - exact).square().mean().sqrt().item()


@pytest.mark.proves("reference", "memory_attention:cpu")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [1.0, 8.0], ids="scale {}".format)
@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"side": 8, "objects": ((7, 16),), "dim": 64, "narrow": 16, "hidden": 192},
        {"side": 9, "images": 4},
        {"side": 1, "objects": ((1, 1),)},
        {"side": 11, "objects": ((1, 130),), "layers": 1},
        {"side": 4, "dim": 16, "narrow": 16, "layers": 3},
        {"side": 65, "objects": ((1, 1),), "dim": 4, "narrow": 2, "hidden": 4, "layers": 1},
    ],
    ids=[
        "ragged",
        "square",
        "an image each",
        "one token",
        "many pointers",
        "as wide as the tokens",
        "more than one window of keys",
    ],
)
def test_errs_at_most_twice_as_much_as_torch(
    isa: str, dtype: torch.dtype, scale: float, shape: dict[str, Any]
) -> None:
    given = cast(case(**shape, scale=scale), dtype)
    exact = memory_attention_reference(*cast(given, torch.float64))
    theirs, mine = (
        error(memory_attention_reference(*given), exact),
        error(poisoned(given, isa), exact),
    )
    assert mine <= 2 * max(theirs, error(exact.to(dtype), exact)), (mine, theirs)


def test_results_do_not_depend_on_threads_or_the_run_or_the_other_objects(isa: str) -> None:
    given = case(side=9)
    one = poisoned(given, isa, threads=1)
    for threads in (1, 2, 3, 7):
        assert torch.equal(poisoned(given, isa, threads), one)
    apart = given._replace(x=given.x.expand(4, -1, -1).contiguous())
    assert torch.equal(poisoned(apart, isa), one)
    m = given.memories
    alone = m._replace(
        slots=m.slots[2:5],
        rows=m.rows[2:5],
        first=[0, 3],
        pointers=m.pointers[:0],
        positions=m.positions[:0],
        first_pointer=[0, 0],
    )
    assert torch.equal(poisoned(given._replace(memories=alone), isa), one[2:3])


def test_not_a_number_spoils_its_object_and_nothing_else(isa: str) -> None:
    given = case()
    clean = poisoned(given, isa)
    given.memories.pointers[5, 2] = torch.nan  # the second object's
    found = poisoned(given, isa)
    assert found[1].isnan().all() and torch.equal(found[[0, 2, 3]], clean[[0, 2, 3]])


def test_maps_may_be_stored_in_another_dtype(isa: str) -> None:
    given = case()
    narrow = given._replace(
        memories=given.memories._replace(maps=[m.bfloat16() for m in given.memories.maps])
    )
    widened = given._replace(
        memories=given.memories._replace(maps=[m.bfloat16().float() for m in given.memories.maps])
    )
    assert torch.equal(poisoned(narrow, isa), poisoned(widened, isa))


def test_the_callers_autocast_decides_the_dtype_of_products() -> None:
    given = case()
    with torch.autocast("cpu", torch.bfloat16):
        found = memory_attention(*given)
    narrow = narrowed(given.weights)
    assert found.dtype == torch.float32 and torch.equal(
        found, memory_attention(*given._replace(weights=narrow))
    )


def test_any_strides_and_maps_used_twice() -> None:
    given = case()
    m = given.memories
    spread = [x.t().contiguous().t() for x in m.maps]
    assert torch.equal(
        memory_attention(*given._replace(memories=m._replace(maps=spread))),
        memory_attention(*given),
    )
    twice = m._replace(slots=[0] * len(m.slots))
    copies = m._replace(maps=[m.maps[0].clone() for _ in m.maps])
    assert torch.equal(
        memory_attention(*given._replace(memories=twice)),
        memory_attention(*given._replace(memories=copies)),
    )


def test_nothing_to_do() -> None:
    given = case(objects=())
    assert memory_attention(*given).shape == (0, 36, 16)


def test_auto_is_the_native_kernel_on_a_cpu() -> None:
    given = case()
    assert torch.equal(memory_attention(*given), memory_attention(*given, backend="cpu"))
    assert not torch.equal(memory_attention(*given), memory_attention(*given, backend="torch"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: cast(c, torch.float64), "float64"),
        (lambda c: changed(c, "layers[0].self_q.weight", lambda w: w.half()), "float16"),
        (lambda c: c._replace(x=c.x.requires_grad_()), "gradients"),
        (lambda c: c._replace(x=c.x.to("meta")), "meta"),
        (
            lambda c: c._replace(
                memories=c.memories._replace(maps=[c.memories.maps[0].half(), *c.memories.maps[1:]])
            ),
            "several dtypes",
        ),
    ],
)
def test_the_kernel_says_why_it_refuses(change: Callable[[Case], Case], reason: str) -> None:
    with pytest.raises(
        BackendError, match=rf"memory_attention: cpu refuses: .*{reason}.*Would run: torch"
    ):
        memory_attention(*change(case()), backend="cpu")


WRONG: list[tuple[Callable[[Case], Case], str]] = [
    (lambda c: c._replace(x=c.x[0]), "x: expected shape"),
    (
        lambda c: c._replace(x=c.x.expand(3, -1, -1)),
        "x: expected 1 image or one for each of 4 objects, got 3",
    ),
    (lambda c: c._replace(x=c.x[..., 1:]), "x: expected the 16 channels of the weights, got 15"),
    (lambda c: c._replace(table=c.table[:, 1:]), "table: expected shape"),
    (lambda c: c._replace(place=c.place[1:]), "temporal, position: expected"),
    (
        lambda c: c._replace(memories=c.memories._replace(maps=[m[1:] for m in c.memories.maps])),
        "maps: expected shape",
    ),
    (
        lambda c: c._replace(memories=c.memories._replace(rows=[9] * 7)),
        "rows: expected a row of the 3",
    ),
    (
        lambda c: c._replace(memories=c.memories._replace(slots=[7] * 7)),
        "slots: expected indices of 7 maps",
    ),
    (
        lambda c: c._replace(memories=c.memories._replace(pointers=c.memories.pointers[1:])),
        "pointers, positions: expected",
    ),
    (
        lambda c: c._replace(memories=c.memories._replace(first=[0, 2, 1, 5, 7])),
        "first: expected 5 ascending offsets from 0 to 7",
    ),
    (
        lambda c: c._replace(memories=c.memories._replace(first_pointer=[0, 3, 3, 7, 10])),
        "a map or a pointer for every object, got none for object 1",
    ),
]
WRONG_WEIGHTS: list[tuple[Callable[[Case], Case], str]] = [
    (
        lambda c: c._replace(weights=MemoryAttentionWeights.unflatten(c.weights.flatten()[:-1])),
        "weights: expected 2 tensors and 26 for each repeated or optional part",
    ),
    (
        lambda c: changed(c, "layers[1].k.weight", lambda w: w[:, 1:]),
        r"weights.layers\[1\].k.weight: expected shape",
    ),
]
"""Refused when they are made: no op and no binding gets them."""


@pytest.mark.parametrize(("change", "words"), [*WRONG, *WRONG_WEIGHTS])
def test_arguments_that_do_not_fit_are_named(change: Callable[[Case], Case], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        memory_attention(*change(case()))


@pytest.mark.parametrize(("change", "_"), WRONG, ids=[words for _, words in WRONG])
def test_the_binding_checks_for_itself(change: Callable[[Case], Case], _: str) -> None:
    given = change(case())
    with pytest.raises(ValueError, match="expected"):
        poisoned(given, "portable")


def test_opcheck() -> None:
    x, weights, table, memories, temporal, place = case(side=3, layers=1)
    torch.library.opcheck(
        torch.ops.sam2_fast.memory_attention.default,
        (x, weights.flatten(), table, *memories, temporal, place),
    )


def test_projecting_values_after_attention_is_the_same_function() -> None:
    """Softmax rows sum to 1: out(P (M W' + b)) = out((P M) W' + b)."""
    q, memory, table = (
        torch.randn(2, 9, 32).double(),
        torch.randn(2, 20, 8).double(),
        rope_table(32, 3).double(),
    )
    widths = (32, 8, 8, 32)
    q_proj, k_proj, v_proj, out = (
        Linear(torch.randn(32, n).double() * 0.3, torch.randn(32).double() * 0.3) for n in widths
    )
    late = attention(q, memory, memory, table, 2, q_proj, k_proj, v_proj, out)
    projected = ((q, q_proj), (memory, k_proj), (memory, v_proj))
    queries, keys, values = (F.linear(x, layer.weight, layer.bias) for x, layer in projected)
    early = F.linear(
        rope_attention_reference(queries, keys, values, table, 2), out.weight, out.bias
    )
    assert (late - early).abs().max() < 1e-13


def test_gradients_flow_through_the_definition() -> None:
    config = Sam2Config(
        embed_dim=16, stages=(1, 1, 1, 1), global_blocks=(), image_size=64, memory_layers=2
    )
    model = MemoryAttention(config)
    given = case(side=4, objects=((1, 4),), dim=256, narrow=64)
    model(
        given.x, torch.randn(1, 16, 256), given.memories, given.temporal, given.place
    ).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_narrower_sets_are_only_for_tests() -> None:
    assert _native_attention(*case(), isa="portable").shape == (4, 36, 16)


def of_memory_attention() -> cases.Case:
    x, weights, table, memories, temporal, place = case(side=3, objects=((1, 4), (2, 0)), layers=1)
    count = len(memories.maps)

    def run(
        x: Tensor,
        table: Tensor,
        p: Tensor,
        positions: Tensor,
        temporal: Tensor,
        place: Tensor,
        *rest: Tensor,
        **how: Any,
    ) -> Tensor:
        given = memories._replace(maps=list(rest[:count]), pointers=p, positions=positions)
        named = MemoryAttentionWeights.unflatten(rest[count:])
        return memory_attention(x, named, table, given, temporal, place, **how)

    return cases.drawn(
        run,
        x,
        table,
        memories.pointers,
        memories.positions,
        temporal,
        place,
        *memories.maps,
        *weights.flatten(),
    )


RECORDED: dict[str, Callable[[], cases.Case]] = {"memory_attention": of_memory_attention}
