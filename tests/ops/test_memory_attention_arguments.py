"""Memory attention: accepted and refused arguments, and the backend that runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sam2_fast.ops.core.registry import BackendError
from sam2_fast.ops.memory_attention import MemoryAttentionWeights, memory_attention
from tests.ops.cases import with_changed_weight
from tests.ops.test_memory_attention import Inputs, case, cast, native_output, with_maps


def test_strides_do_not_change_results() -> None:
    inputs = case()
    strided_maps = [x.t().contiguous().t() for x in inputs.memories.maps]
    output = memory_attention(*with_maps(inputs, strided_maps))
    assert torch.equal(output, memory_attention(*inputs))


def test_a_map_may_be_used_several_times() -> None:
    inputs = case()
    m = inputs.memories
    one_map = m._replace(slots=[0] * len(m.slots))
    copies = m._replace(maps=[m.maps[0].clone() for _ in m.maps])
    assert torch.equal(
        memory_attention(*inputs._replace(memories=one_map)),
        memory_attention(*inputs._replace(memories=copies)),
    )


def test_no_objects_give_an_empty_output() -> None:
    inputs = case(objects=())
    assert memory_attention(*inputs).shape == (0, 36, 16)


def test_auto_runs_the_native_kernel_on_a_cpu() -> None:
    inputs = case()
    assert torch.equal(memory_attention(*inputs), memory_attention(*inputs, backend="cpu"))
    assert not torch.equal(memory_attention(*inputs), memory_attention(*inputs, backend="torch"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: cast(c, torch.float64), "float64"),
        (
            lambda c: with_changed_weight(c, "layers[0].self_q.weight", lambda w: w.half()),
            "float16",
        ),
        (lambda c: c._replace(x=c.x.requires_grad_()), "gradients"),
        (lambda c: c._replace(x=c.x.to("meta")), "meta"),
        (
            lambda c: with_maps(c, [c.memories.maps[0].half(), *c.memories.maps[1:]]),
            "several dtypes",
        ),
    ],
)
def test_a_refusal_names_its_reason(change: Callable[[Inputs], Inputs], reason: str) -> None:
    with pytest.raises(
        BackendError, match=rf"memory_attention: cpu refuses: .*{reason}.*Would run: torch"
    ):
        memory_attention(*change(case()), backend="cpu")


def with_memories(inputs: Inputs, **fields: Any) -> Inputs:
    return inputs._replace(memories=inputs.memories._replace(**fields))


INVALID_ARGUMENTS: list[tuple[Callable[[Inputs], Inputs], str]] = [
    (lambda c: c._replace(x=c.x[0]), "x: expected shape"),
    (
        lambda c: c._replace(x=c.x.expand(3, -1, -1)),
        "x: expected 1 image or one for each of 4 objects, got 3",
    ),
    (lambda c: c._replace(x=c.x[..., 1:]), "x: expected the 16 channels of the weights, got 15"),
    (lambda c: c._replace(table=c.table[:, 1:]), "table: expected shape"),
    (lambda c: c._replace(position=c.position[1:]), "temporal, position: expected"),
    (lambda c: with_maps(c, [m[1:] for m in c.memories.maps]), "maps: expected shape"),
    (lambda c: with_memories(c, rows=[9] * 7), "rows: expected a row of the 3"),
    (lambda c: with_memories(c, slots=[7] * 7), "slots: expected indices of 7 maps"),
    (
        lambda c: with_memories(c, pointers=c.memories.pointers[1:]),
        "pointers, positions: expected",
    ),
    (
        lambda c: with_memories(c, first=[0, 2, 1, 5, 7]),
        "first: expected 5 ascending offsets from 0 to 7",
    ),
    (
        lambda c: with_memories(c, first_pointer=[0, 3, 3, 7, 10]),
        "a map or a pointer for every object, got none for object 1",
    ),
]


INVALID_WEIGHTS: list[tuple[Callable[[Inputs], Inputs], str]] = [
    (
        lambda c: c._replace(weights=MemoryAttentionWeights.unflatten(c.weights.flatten()[:-1])),
        "weights: expected 2 tensors and 26 for each repeated or optional part",
    ),
    (
        lambda c: with_changed_weight(c, "layers[1].k.weight", lambda w: w[:, 1:]),
        r"weights.layers\[1\].k.weight: expected shape",
    ),
]
"""The constructor of the weights raises, so that no op and no binding receives them."""


@pytest.mark.parametrize(("change", "message"), [*INVALID_ARGUMENTS, *INVALID_WEIGHTS])
def test_arguments_that_do_not_fit_are_named(
    change: Callable[[Inputs], Inputs], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        memory_attention(*change(case()))


@pytest.mark.parametrize(
    "change",
    [change for change, _ in INVALID_ARGUMENTS],
    ids=[message for _, message in INVALID_ARGUMENTS],
)
def test_the_binding_checks_its_arguments(change: Callable[[Inputs], Inputs]) -> None:
    inputs = change(case())
    with pytest.raises(ValueError, match="expected"):
        native_output(inputs, "portable")


def test_opcheck_passes() -> None:
    x, weights, table, memories, temporal, position = case(side=3, layers=1)
    torch.library.opcheck(
        torch.ops.sam2_fast.memory_attention.default,
        (x, weights.flatten(), table, *memories, temporal, position),
    )
