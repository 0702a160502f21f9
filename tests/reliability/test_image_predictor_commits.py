"""A call of an image predictor that fails, at whatever operation or line, changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from tests.reliability.faults import (
    HOW_MANY,
    FailingOp,
    InterruptedLine,
    files_of,
    positions_of,
    raises,
)
from tests.reliability.image_models import answer, picture, predictor

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


FAULTS = {
    "error": FailingOp,
    "interrupt": lambda at=None: InterruptedLine(at, files_of("image/*.py")),
}


@pytest.mark.reliability("27", "interrupts")
@pytest.mark.parametrize("most", HOW_MANY)
@pytest.mark.parametrize("kind", FAULTS)
@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_raises_leaves_one_whole_image(name: str, kind: str, most: int) -> None:
    image_predictor = predictor()
    image_predictor.set_image(picture(0))
    expected = answer(image_predictor)
    call = partial(CALLS[name], image_predictor)
    positions = positions_of(call, FAULTS[kind](), most)
    image_predictor.set_image(picture(0))
    before = state(image_predictor)
    for position in positions:
        fault = FAULTS[kind](position)
        assert raises(call, fault)
        changed = [a is not b for a, b in zip(state(image_predictor), before, strict=True)]
        if any(changed):  # the interrupt came after the assignment: everything is new
            assert kind == "interrupt" and changed[0] and changed[1], fault.where
            image_predictor.set_image(picture(0))
            before = state(image_predictor)
    np.testing.assert_array_equal(answer(image_predictor), expected)
