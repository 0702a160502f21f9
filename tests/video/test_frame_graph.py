"""CUDA graphs of tracked frames: positions of object pointers, frames without points, hooks."""

from __future__ import annotations

import torch

from sam2_fast.recording.frame import AGES_PER_BLOCK, MAX_AGE_BLOCKS, FrameGraph, room_for
from sam2_fast.types import NoPoints, Points, Remembered
from tests.video.sessions import small_predictor


@torch.inference_mode()
def test_positions_equal_those_of_the_model_at_any_age() -> None:
    model = small_predictor()
    features = model.encode_image(torch.zeros(1, 3, 64, 64))
    size = AGES_PER_BLOCK
    ages = [0, 1, 15, size - 1, size, 5 * size + 7, -1, -size - 3]
    remembered = Remembered([[]], [[]], [[torch.zeros(256)] * len(ages)], [ages], 3)
    graph = FrameGraph(model, features, room_for(model, remembered), 3, True, torch.float32)
    ages_as_floats = torch.tensor(ages, dtype=torch.float32)
    expected = model.pointer_positions(ages_as_floats, 3).view(len(ages), -1)
    for age, row in zip(ages, expected, strict=True):
        block = graph._positions_of_block(age // size)
        assert torch.allclose(block[age % size], row, atol=1e-6), age
    addressed = graph.fill(features, remembered)
    addresses = [graph._positions_of_block(age // size)[age % size].data_ptr() for age in ages]
    assert graph._position_addresses[: len(ages)].tolist() == addresses and addressed
    assert expected.std(0).max() > 0.1, "positions depend on age"
    for number in range(2 * MAX_AGE_BLOCKS):
        graph._positions_of_block(number)
    assert len(graph._position_blocks) <= MAX_AGE_BLOCKS


@torch.inference_mode()
def test_no_points_are_bitwise_equal_to_a_point_of_label_minus_1() -> None:
    model = small_predictor()
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    features = model.encode_image(image)
    padding = Points(torch.zeros(2, 1, 2), torch.full((2, 1), -1, dtype=torch.int32))
    for multimask in (False, True):
        actual = model.track(features.low, features, NoPoints(2), None, multimask)
        expected = model.track(features.low, features, padding, None, multimask)
        assert all(map(torch.equal, actual, expected))


def test_a_hook_on_a_head_is_called() -> None:
    model = small_predictor()
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        features = model.encode_image(image)
        expected = model.track(features.low, features, NoPoints(2), None, True)
        calls: list[str] = []
        model.obj_ptr_proj.layers[0].register_forward_hook(lambda *_: calls.append("pointer"))
        actual = model.track(features.low, features, NoPoints(2), None, True)
    assert calls == ["pointer"]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(actual, expected, strict=True))
