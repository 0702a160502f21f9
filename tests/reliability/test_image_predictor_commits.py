"""A call of an image predictor that fails, at whatever operation or line, changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sam2_fast
from tests.reliability.image_models import Failing, answer, interrupted, picture, predictor

IMAGE_FILES = str(Path(str(sam2_fast.__file__)).parent / "image")
CALLS: dict[str, Callable[[Any], object]] = {
    "set_image": lambda p: p.set_image(picture(1, 20, 30)),
    "set_image_batch": lambda p: p.set_image_batch([picture(1), picture(2, 20, 30)]),
    "predict": answer,
    "reset_predictor": lambda p: p.reset_predictor(),
}


def state(image_predictor: Any) -> tuple[Any, ...]:
    return (
        image_predictor._features,
        image_predictor._orig_hw,
        image_predictor._is_image_set,
        image_predictor._is_batch,
    )


@pytest.mark.reliability("27")
@pytest.mark.parametrize("name", ["set_image", "set_image_batch", "predict"])
def test_a_failure_of_an_operation_leaves_the_previous_image(name: str) -> None:
    image_predictor = predictor()
    image_predictor.set_image(picture(0))
    before, expected = state(image_predictor), answer(image_predictor)
    with Failing(-1) as counted:
        CALLS[name](image_predictor)
    image_predictor.set_image(picture(0))
    before = state(image_predictor)
    # all late operations, which are near the commit, and a fifth of the others
    for k in sorted({*range(0, counted.count, 5), *range(counted.count - 20, counted.count)}):
        with pytest.raises(torch.OutOfMemoryError), Failing(k):
            CALLS[name](image_predictor)
        assert all(a is b for a, b in zip(state(image_predictor), before, strict=True)), k
    np.testing.assert_array_equal(answer(image_predictor), expected)


@pytest.mark.reliability("interrupts")
@pytest.mark.parametrize("name", CALLS)
def test_an_interrupt_at_any_line_leaves_one_whole_image(name: str) -> None:
    image_predictor = predictor()
    image_predictor.set_image(picture(0))
    expected = answer(image_predictor)
    before = state(image_predictor)
    reached = 0
    for at in range(10_000):
        try:
            with interrupted(at, lambda file: file.startswith(IMAGE_FILES)):
                CALLS[name](image_predictor)
        except KeyboardInterrupt:
            reached += 1
        else:
            break
        changed = [a is not b for a, b in zip(state(image_predictor), before, strict=True)]
        if any(changed):  # the interrupt came after the assignment: everything is new
            assert changed[0] and changed[1], at
            image_predictor.set_image(picture(0))
            before = state(image_predictor)
    assert reached > 3
    image_predictor.set_image(picture(0))
    np.testing.assert_array_equal(answer(image_predictor), expected)
