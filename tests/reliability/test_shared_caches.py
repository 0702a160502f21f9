"""Caches that threads share: no race, no key that lacks a setting, no memory of the caller."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sam2_fast.image.automatic import SAM2AutomaticMaskGenerator
from sam2_fast.image.predictor import SAM2ImagePredictor
from sam2_fast.model.position import PositionEmbeddingSine
from sam2_fast.ops.core.cache import Cache, derive
from sam2_fast.ops.core.module_state import ModuleState, Watched
from sam2_fast.ops.core.weights import Weights, tensor
from sam2_fast.proving.card import Card
from sam2_fast.proving.store import Contents, Store, Verdict
from sam2_fast.recording.cache import MAX_GRAPHS, Graphs
from tests.reliability.image_models import answer, picture, shared_model
from tests.reliability.racing import race

pytestmark = pytest.mark.reliability("37")


MODES: list[Callable[[ExitStack], object]] = [
    lambda _: None,
    lambda stack: stack.enter_context(torch.autocast("cpu", torch.bfloat16)),
    lambda stack: stack.enter_context(torch.inference_mode()),
    lambda stack: stack.enter_context(torch.no_grad()),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_predictors_of_one_model_in_threads_of_all_modes_equal_serial_ones(
    dtype: torch.dtype,
) -> None:
    shared = copy.deepcopy(shared_model()).to(dtype)

    def use(index: int, model: Any) -> np.ndarray:
        with ExitStack() as stack:
            MODES[index % len(MODES)](stack)
            image_predictor = SAM2ImagePredictor(model)
            image_predictor.set_image(picture(index))
            return answer(image_predictor)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        serial = [use(i, copy.deepcopy(shared)) for i in range(8)]
        parallel = race(*[lambda i=i: use(i, shared) for i in range(8)], repeats=2)
    finally:
        torch.set_num_threads(threads)
    for expected, results in zip(serial, parallel, strict=True):
        for result in results:
            np.testing.assert_array_equal(result, expected)


def test_a_cached_position_has_the_autocast_of_its_caller() -> None:
    encoder = copy.deepcopy(shared_model()).sam_prompt_encoder
    with torch.no_grad():
        expected = encoder.dense_position().clone()
        with torch.autocast("cpu", torch.bfloat16):
            rounded = copy.deepcopy(encoder).dense_position()
            assert torch.equal(encoder.dense_position(), rounded)
        assert not torch.equal(rounded, expected)
        assert torch.equal(encoder.dense_position(), expected)


@dataclass(frozen=True, eq=False)
class Scales(Weights, root=True):
    """Scale of C channels."""

    weight: torch.Tensor = tensor("C")  # noqa: RUF009 - a field of weights


def test_values_derived_from_weights_do_not_depend_on_autocast() -> None:
    weights = Scales(torch.rand(8))
    matrix = torch.rand(8, 8)

    def make() -> torch.Tensor:
        return matrix @ weights.weight[:, None]

    with torch.autocast("cpu", torch.bfloat16):
        value = derive(weights, "product", make)
    assert value.dtype == torch.float32
    assert torch.equal(value, make())


def test_a_race_for_one_value_gives_every_thread_a_right_one() -> None:
    cache: Cache[torch.Tensor] = Cache()
    parameters = [torch.full((4,), float(i)) for i in range(4)]

    def get(parameter: torch.Tensor) -> bool:
        return torch.equal(cache.get(lambda: parameter + 1, [parameter]), parameter + 1)

    results = race(*[lambda p=p: get(p) for p in parameters], repeats=300)
    assert all(all(own) for own in results)


def test_weights_may_be_dropped_while_another_thread_reads_them() -> None:
    model = copy.deepcopy(shared_model())
    block = model.image_encoder.trunk.blocks[0]

    def use() -> bool:
        with torch.no_grad():
            return block.op_weights(torch.zeros(1)) is not None

    def drop() -> None:
        block._fusion.clear()
        block._fusion.cached_values

    results = race(use, use, drop, drop, repeats=300)
    assert all(results[0]) and all(results[1])


BETWEEN: list[Callable[[], object]] = []


class Pausing(nn.Module):
    """`BETWEEN` runs in the middle of an assignment, as another thread may."""

    def __setattr__(self, name: str, value: Any) -> None:
        for call in BETWEEN:
            call()
        super().__setattr__(name, value)


class Compared(Watched, Pausing):
    def __init__(self) -> None:
        super().__init__()
        self.factor = 1


def test_an_assignment_is_noticed_although_another_thread_compared_just_before() -> None:
    module = Compared()
    state = ModuleState([module])
    answers = []
    BETWEEN.append(lambda: answers.append(state.is_unchanged()))
    try:
        module.factor = 2
    finally:
        BETWEEN.clear()
    assert answers == [True]
    assert not state.is_unchanged()


def test_writes_to_a_returned_position_do_not_reach_later_ones() -> None:
    encoding = PositionEmbeddingSine(8)
    expected = encoding(torch.zeros(1, 1, 4, 4)).clone()
    encoding(torch.zeros(1, 1, 4, 4)).fill_(7.0)
    assert torch.equal(encoding(torch.zeros(1, 1, 4, 4)), expected)


def verdict(op: str) -> Verdict:
    return Verdict(op, "triton", "float32", None)


CARD = Card("card", 90, "1", "2", "3", "4", "5")


def test_a_thread_never_reads_a_file_of_verdicts_as_empty(tmp_path: Path) -> None:
    Store(tmp_path, CARD).merge([verdict("nms")], [])
    for _ in range(5):
        store = Store(tmp_path, CARD)
        results = race(*[lambda store=store: len(store.read().verdicts)] * 4, repeats=5)
        assert {count for own in results for count in own} == {1}


def test_an_interrupt_does_not_empty_the_verdicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Store(tmp_path, CARD).merge([verdict("nms")], [])
    store = Store(tmp_path, CARD)

    def interrupt(_: Store) -> Contents:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Store, "_parse", interrupt)
        store.read()
    assert len(store.read().verdicts) == 1


def test_graphs_may_be_removed_while_another_thread_reads_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graphs, model = Graphs(), shared_model()
    captured = graphs.validate(model)
    monkeypatch.setattr(Graphs, "validate", lambda self, model: captured)  # it takes long
    monkeypatch.setattr("sam2_fast.recording.cache.cached_values", lambda model: [])

    def insert(first: int) -> None:
        for key in range(first, first + MAX_GRAPHS):
            graphs._insert(model, ("encode", key), object(), captured)
            graphs._get(("encode", key))
            graphs._get(("encode", key - 5))

    race(*[lambda i=i: insert(i) for i in range(4)], graphs._entries.clear, repeats=3)
    assert len(graphs) <= MAX_GRAPHS


def test_a_graph_of_changed_weights_is_not_stored() -> None:
    graphs, model = Graphs(), copy.deepcopy(shared_model())
    captured = graphs.validate(model)
    with torch.no_grad():
        model.no_mem_embed.add_(1)
    graphs._insert(model, ("encode", 1), object(), captured)
    assert len(graphs) == 0


def test_arrays_of_the_caller_and_of_results_are_not_shared() -> None:
    image_predictor = SAM2ImagePredictor(shared_model())
    image = np.random.default_rng(0).random((64, 64, 3), np.float32)
    image_predictor.set_image(image)
    hint = torch.zeros(1, 16, 16)
    points = torch.tensor([[20.0, 30.0]])
    prompt = {"point_coords": points, "point_labels": torch.tensor([1]), "mask_input": hint}

    def results() -> list[np.ndarray]:
        arrays = [*image_predictor.predict(**prompt, return_logits=True)]
        return [*arrays, image_predictor.get_image_embedding().numpy()]

    expected = [np.array(result) for result in results()]
    image.fill(0)
    for result in results():
        result.fill(7)
    for first, second in zip(results(), expected, strict=True):
        np.testing.assert_array_equal(first, second)
    assert not hint.any() and points.tolist() == [[20.0, 30.0]]


def test_a_generator_has_its_own_copy_of_point_grids() -> None:
    grid = np.full((1, 2), 0.5)
    generator = SAM2AutomaticMaskGenerator(shared_model(), points_per_side=None, point_grids=[grid])
    grid.fill(0.0)
    assert generator.point_grids[0].tolist() == [[0.5, 0.5]]
