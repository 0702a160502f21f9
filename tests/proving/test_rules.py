"""What is alike: a session proves each kernel of its model once, not for each call."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from sam2_fast.doctor.calls import (
    moving_squares,
    observed_calls,
    perturb_constants,
    run_pipeline,
)
from sam2_fast.ops.core import registry
from sam2_fast.ops.mask_decoder import MaskDecoderWeights
from sam2_fast.ops.memory_attention import MEMORIES, Memories
from sam2_fast.proving.case import Case
from sam2_fast.proving.prover import prove
from sam2_fast.proving.rules import Call, Rule, any_configuration, described, rule_of
from tests.video.recorded import small_predictor

Calls = dict[str, list[Call]]


@pytest.fixture(scope="module")
def calls() -> Calls:
    """Every call of a small model through an image, automatic masks and eight frames."""
    found: Calls = {}
    model = small_predictor()
    perturb_constants(model)
    video = moving_squares(9, 300, 420)
    with torch.no_grad(), observed_calls(lambda op, call: found.setdefault(op, []).append(call)):
        run_pipeline(model, video[0], video, 8)
    return found


def configurations(op: str, calls: list[Call]) -> set[Any]:
    return {rule_of(op).configuration(*c.arguments, **c.named) for c in calls}


def test_a_session_needs_few_proofs(calls: Calls) -> None:
    attended = calls["memory_attention"]
    assert len({len(c.arguments[3].maps) for c in attended}) >= 3, "memories grow"
    assert len(configurations("memory_attention", attended)) == 1
    assert len(configurations("memory_encoder", calls["memory_encoder"])) <= 2  # binarized, or not
    assert len(configurations("mask_decoder", calls["mask_decoder"])) <= 3
    assert len(configurations("hiera_block", calls["hiera_block"])) <= 5
    for op in ("nms", "small_components", "mask_postprocess"):
        assert len(configurations(op, calls[op])) <= 4, op


def test_configurations_are_hashable_and_have_different_texts(calls: Calls) -> None:
    for op, made in calls.items():
        found = configurations(op, made)
        assert len({described(configuration) for configuration in found}) == len(found), op


def samples(calls: Calls) -> Iterator[tuple[str, Call]]:
    for op, made in calls.items():
        last = {rule_of(op).configuration(*c.arguments, **c.named): c for c in made}
        yield from ((op, call) for call in last.values())


def test_torch_is_right_by_its_own_measure_on_every_sample(calls: Calls) -> None:
    for op, call in samples(calls):
        rule = rule_of(op)
        sample = rule.sample(call)
        reference = registry.all_implementations()[op, "torch"].run
        with torch.no_grad():
            outcome = Case(reference, rule, sample).check(reference)
        assert outcome.reason is None, (op, outcome)
        assert outcome.error is None or outcome.error <= 1.0001, (op, outcome)
        assert rule.configuration(*sample.arguments, **sample.named) == rule.configuration(
            *call.arguments, **call.named
        ), f"{op}: a sample stands for its configuration"


def test_samples_are_small(calls: Calls) -> None:
    for op, call in samples(calls):
        first = next(x for x in tree_leaves(rule_of(op).sample(call)) if isinstance(x, Tensor))
        assert len(first) <= 16 or op in ("nms", "preprocess_frame", "mask_postprocess"), op


@pytest.mark.parametrize(("maps", "pointers"), [([1, 2], [0, 3]), ([0, 2], [2, 0]), ([9], [4])])
def test_memory_attention_is_proved_with_as_many_maps_as_there_will_be(
    maps: list[int], pointers: list[int]
) -> None:
    first = [0, *torch.tensor(maps).cumsum(0).tolist()]
    first_pointer = [0, *torch.tensor(pointers).cumsum(0).tolist()]
    memories = Memories(
        [torch.randn(25, 16) for _ in range(first[-1])],
        list(range(first[-1])),
        [i % 3 for i in range(first[-1])],
        first,
        torch.randn(first_pointer[-1], 16),
        torch.randn(first_pointer[-1], 16),
        first_pointer,
    )
    x = torch.randn(len(maps), 25, 64)
    call = Call((x, [], None, memories, None, None), {})
    rule = rule_of("memory_attention")
    image, _, _, filled, _, _ = rule.sample(call).arguments
    assert len(image) == len(maps)
    assert counts(filled) == [MEMORIES // m * m + m * (MEMORIES % m > 0) if m else 0 for m in maps]
    assert filled.first_pointer == first_pointer
    (other,) = rule.more(call)
    image, _, _, two, _, _ = other.arguments
    assert image.shape == (1, 25, 64)
    assert counts(two) == [maps[0], counts(filled)[0]]
    assert two.first_pointer == [0, pointers[0], 2 * pointers[0]]
    for made in (filled, two):
        assert len(made.rows) == len(made.slots) == made.first[-1]
        assert len(made.pointers) == len(made.positions) == made.first_pointer[-1]


def counts(memories: Memories) -> list[int]:
    return [b - a for a, b in zip(memories.first, memories.first[1:], strict=False)]


def test_a_kernel_must_be_right_on_further_calls_too() -> None:
    def sums(x: Tensor) -> Tensor:
        return x.cumsum(-1)

    def short(x: Tensor) -> Tensor:
        return x.cumsum(-1) if x.shape[-1] < 8 else x

    rule = Rule(more=lambda call: [Call((torch.ones(2, 9),), {})])
    call = Call((torch.ones(2, 4),), {})
    assert prove(sums, sums, rule, call).outcome.reason is None
    assert "error of torch" in (prove(short, sums, rule, call).outcome.reason or "")
    assert prove(short, sums, Rule(), call).outcome.reason is None


def test_masks_of_objects_whose_presence_rounding_decides_are_not_compared() -> None:
    align = rule_of("object_heads").align
    assert align is not None
    mask, pointer = torch.ones(2, 1, 4, 4), torch.ones(2, 8)
    presences = torch.tensor([[1e-4], [3.0]]), torch.tensor([[-1e-4], [3.0]])
    results = tuple((mask, pointer, p) for p in (*presences, presences[0]))
    for found, found_pointer, presence in align(Call((), {}), results):
        assert len(found) == len(found_pointer) == 1 and len(presence) == 2


def test_decoder_results_are_compared_where_the_op_decides_them() -> None:
    rule = rule_of("mask_decoder")
    assert rule.align is not None
    present = torch.tensor([[True, True, False], [True, True, True]])
    sizes = {"C": 8, "F": 4, "H": 4, "K": 4}
    weights = MaskDecoderWeights.build(lambda _, shape: torch.zeros(shape), count=2, **sizes)
    arguments = (None, None, None, None, None, present, weights, 8, 3, 1, True)
    logits, tokens = torch.ones(2, 1, 4, 4), torch.ones(2, 3, 8)
    ious = (
        torch.tensor([[0.0, 0.5, 0.6], [0.0, 0.9, 0.1]]),
        torch.tensor([[0.0, 0.6, 0.5], [0.0, 0.9, 0.1]]),
    )
    results = tuple((logits, iou, tokens) for iou in (*ious, ious[0]))
    for found, _, after in rule.align(Call(arguments, {}), results):
        assert len(found) == 1, "of the first object another mask was drawn"
        assert not after[0, 2].any() and after[1, 2].all()


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ((torch.zeros(2, 5), 3), (torch.zeros(7, 5), 3), True),
        ((torch.zeros(2, 5), 3), (torch.zeros(2, 6), 3), False),
        ((torch.zeros(2, 5), 3), (torch.zeros(2, 5), 4), False),
        ((torch.zeros(2, 5),), (torch.zeros(2, 5).half(),), False),
        ((torch.zeros(2, 5), [torch.zeros(3)]), (torch.zeros(2, 5), [torch.zeros(4)]), False),
        ((torch.zeros(2, 5), None), (torch.zeros(2, 5), torch.zeros(1)), False),
    ],
)
def test_the_general_configuration(one: Any, other: Any, alike: bool) -> None:
    assert (any_configuration(*one) == any_configuration(*other)) == alike
