"""Rules of ops: a session proves each kernel a few times, not for each of its calls."""

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
from sam2_fast.proving.only_torch import only_torch
from sam2_fast.proving.prover import prove
from sam2_fast.proving.rules import Call, Rule, any_configuration, described, rule_of
from tests.video.sessions import small_predictor

Calls = dict[str, list[Call]]


@pytest.fixture(scope="module")
def calls() -> Calls:
    """All calls of ops, by op, of a small model on an image and on eight frames."""
    by_op: Calls = {}
    model = small_predictor()
    perturb_constants(model)
    video = moving_squares(9, 300, 420)
    with torch.no_grad(), observed_calls(lambda op, call: by_op.setdefault(op, []).append(call)):
        run_pipeline(model, video[0], video, 8)
    return by_op


def configurations(op: str, calls: list[Call]) -> set[Any]:
    return {rule_of(op).configuration(*c.arguments, **c.named) for c in calls}


def test_a_session_needs_few_proofs(calls: Calls) -> None:
    attention = calls["memory_attention"]
    assert len({len(c.arguments[3].maps) for c in attention}) >= 3, "memories grow"
    assert len(configurations("memory_attention", attention)) == 1
    # Masks are binarized or not.
    assert len(configurations("memory_encoder", calls["memory_encoder"])) <= 2
    assert len(configurations("mask_decoder", calls["mask_decoder"])) <= 3
    assert len(configurations("hiera_block", calls["hiera_block"])) <= 5
    for op in ("nms", "small_components", "mask_postprocess"):
        assert len(configurations(op, calls[op])) <= 4, op


def test_configurations_are_hashable_and_have_different_texts(calls: Calls) -> None:
    for op, calls_of_op in calls.items():
        different = configurations(op, calls_of_op)
        assert len({described(configuration) for configuration in different}) == len(different), op


def last_calls(calls: Calls) -> Iterator[tuple[str, Call]]:
    """The last call of every configuration of every op."""
    for op, calls_of_op in calls.items():
        last = {rule_of(op).configuration(*c.arguments, **c.named): c for c in calls_of_op}
        yield from ((op, call) for call in last.values())


def test_the_reference_passes_its_own_proof_on_every_sample(calls: Calls) -> None:
    for op, call in last_calls(calls):
        rule = rule_of(op)
        sample = rule.sample(call)
        reference = registry.all_implementations()[op, "torch"].run
        with torch.no_grad(), only_torch():  # a definition may call other ops
            outcome = Case(reference, rule, sample).check(reference)
        assert outcome.reason is None, (op, outcome)
        assert outcome.error is None or outcome.error <= 1.0001, (op, outcome)
        configuration = rule.configuration(*call.arguments, **call.named)
        assert rule.configuration(*sample.arguments, **sample.named) == configuration, op


def test_samples_are_small(calls: Calls) -> None:
    for op, call in last_calls(calls):
        first = next(x for x in tree_leaves(rule_of(op).sample(call)) if isinstance(x, Tensor))
        assert len(first) <= 16 or op in ("nms", "preprocess_frame", "mask_postprocess"), op


@pytest.mark.parametrize(("maps", "pointers"), [([1, 2], [0, 3]), ([0, 2], [2, 0]), ([9], [4])])
def test_memory_attention_is_proved_with_the_maximum_number_of_maps(
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
    image, _, _, full, _, _ = rule.sample(call).arguments
    assert len(image) == len(maps)
    assert counts(full) == [MEMORIES // m * m + m * (MEMORIES % m > 0) if m else 0 for m in maps]
    assert full.first_pointer == first_pointer
    (other,) = rule.more(call)
    image, _, _, uneven, _, _ = other.arguments
    assert image.shape == (1, 25, 64)
    assert counts(uneven) == [maps[0], counts(full)[0]]
    assert uneven.first_pointer == [0, pointers[0], 2 * pointers[0]]
    for generated in (full, uneven):
        assert len(generated.rows) == len(generated.slots) == generated.first[-1]
        assert len(generated.pointers) == len(generated.positions) == generated.first_pointer[-1]


def counts(memories: Memories) -> list[int]:
    return [b - a for a, b in zip(memories.first, memories.first[1:], strict=False)]


def test_a_kernel_must_be_correct_on_the_further_calls_of_its_rule() -> None:
    def sums(x: Tensor) -> Tensor:
        return x.cumsum(-1)

    def sums_of_short_rows(x: Tensor) -> Tensor:
        return x.cumsum(-1) if x.shape[-1] < 8 else x

    rule = Rule(more=lambda call: [Call((torch.ones(2, 9),), {})])
    call = Call((torch.ones(2, 4),), {})
    assert prove(sums, sums, rule, call).outcome.reason is None
    reason = prove(sums_of_short_rows, sums, rule, call).outcome.reason
    assert "error of torch" in (reason or "")
    assert prove(sums_of_short_rows, sums, Rule(), call).outcome.reason is None


def test_masks_are_not_compared_if_rounding_decides_the_presence_of_the_object() -> None:
    align = rule_of("object_heads").align
    assert align is not None
    mask = torch.ones(2, 1, 4, 4)
    pointer = torch.ones(2, 8)
    presences = torch.tensor([[1e-4], [3.0]]), torch.tensor([[-1e-4], [3.0]])
    results = tuple((mask, pointer, p) for p in (*presences, presences[0]))
    for masks, pointers, presence in align(Call((), {}), results):
        assert len(masks) == len(pointers) == 1 and len(presence) == 2


def test_decoder_results_are_aligned_before_they_are_compared() -> None:
    rule = rule_of("mask_decoder")
    assert rule.align is not None
    present = torch.tensor([[True, True, False], [True, True, True]])
    sizes = {"C": 8, "F": 4, "H": 4, "K": 4}
    weights = MaskDecoderWeights.build(lambda _, shape: torch.zeros(shape), count=2, **sizes)
    arguments = (None, None, None, None, None, present, weights, 8, 3, 1, True)
    logits = torch.ones(2, 1, 4, 4)
    tokens = torch.ones(2, 3, 8)
    ious = (
        torch.tensor([[0.0, 0.5, 0.6], [0.0, 0.9, 0.1]]),
        torch.tensor([[0.0, 0.6, 0.5], [0.0, 0.9, 0.1]]),
    )
    results = tuple((logits, iou, tokens) for iou in (*ious, ious[0]))
    for masks, _, aligned_tokens in rule.align(Call(arguments, {}), results):
        assert len(masks) == 1, "another mask was selected for the first object"
        assert not aligned_tokens[0, 2].any() and aligned_tokens[1, 2].all()


@pytest.mark.parametrize(
    ("first", "second", "is_same"),
    [
        ((torch.zeros(2, 5), 3), (torch.zeros(7, 5), 3), True),
        ((torch.zeros(2, 5), 3), (torch.zeros(2, 6), 3), False),
        ((torch.zeros(2, 5), 3), (torch.zeros(2, 5), 4), False),
        ((torch.zeros(2, 5),), (torch.zeros(2, 5).half(),), False),
        ((torch.zeros(2, 5), [torch.zeros(3)]), (torch.zeros(2, 5), [torch.zeros(4)]), False),
        ((torch.zeros(2, 5), None), (torch.zeros(2, 5), torch.zeros(1)), False),
    ],
)
def test_the_general_configuration(first: Any, second: Any, is_same: bool) -> None:
    assert (any_configuration(*first) == any_configuration(*second)) == is_same
