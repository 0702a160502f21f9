"""A call on a session that raises, at whatever operation or line, has changed nothing."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest

from tests.reliability.faults import (
    HOW_MANY,
    FailingOp,
    InterruptedAnywhere,
    InterruptedLine,
    positions_of,
    raises,
)
from tests.reliability.session_calls import CALLS, CLIP, PASSES, SessionCall, same, stream
from tests.reliability.session_state import state_of
from tests.video.conftest import small_predictor

FAULTS = {
    "error": FailingOp,
    "interrupt": InterruptedLine,
    "interrupt anywhere": InterruptedAnywhere,
}
UNDISTURBED = {**dict.fromkeys(FAULTS, nullcontext), "error": FailingOp}
"""What calls without a fault run in, so that they compute as those with one."""


class WithSteps(type(small_predictor())):  # type: ignore[misc]
    """A predictor that overrides a step, so that the official steps are called."""

    def _use_multimask(self, is_init_cond_frame: bool, point_inputs: Any) -> bool:
        return super()._use_multimask(is_init_cond_frame, point_inputs)


@pytest.fixture(scope="module", params=["fused", "official steps"])
def predictor(request: pytest.FixtureRequest) -> Any:
    predictor = small_predictor()
    if request.param == "official steps":
        predictor.__class__ = WithSteps
    return predictor


def undisturbed(predictor: Any, case: SessionCall) -> tuple[Any, Any]:
    session = case.prepare(predictor)
    return case.call(predictor, session), case.probe(predictor, session)


@pytest.mark.reliability("F1", "F6", "F7", "27", "28", "interrupts")
@pytest.mark.parametrize("most", HOW_MANY)
@pytest.mark.parametrize("kind", [*FAULTS])
@pytest.mark.parametrize("name", [*CALLS])
def test_a_call_that_raises_leaves_the_session_as_it_was(
    predictor: Any, name: str, kind: str, most: int
) -> None:
    case = CALLS[name]
    expected, expected_probe = undisturbed(predictor, case)
    session = case.prepare(predictor)
    trial = copy.deepcopy(session)
    positions = positions_of(lambda: case.call(predictor, trial), FAULTS[kind](), most)
    before = state_of(session)
    for position in positions:
        fault = FAULTS[kind](position)
        if not raises(partial(case.call, predictor, session), fault):
            session = case.prepare(predictor)  # fewer operations than in the trial
            before = state_of(session)
            continue
        assert state_of(session) == before, f"{kind} {position} {fault.where}"
    assert same(case.call(predictor, session), expected)
    assert same(case.probe(predictor, session), expected_probe)


@pytest.mark.reliability("28", "interrupts")
@pytest.mark.parametrize("most", HOW_MANY)
@pytest.mark.parametrize("kind", [*FAULTS])
@pytest.mark.parametrize("name", [*PASSES])
def test_a_pass_that_raises_keeps_the_finished_frames_and_continues(
    predictor: Any, name: str, kind: str, most: int
) -> None:
    case = PASSES[name]
    prepared = case.prepare(predictor)
    trial = copy.deepcopy(prepared)
    positions = positions_of(lambda: case.call(predictor, trial), FAULTS[kind](), most)
    with UNDISTURBED[kind]():
        session = copy.deepcopy(prepared)
        expected, expected_probe = case.call(predictor, session), case.probe(predictor, session)
    for number, position in enumerate(positions):
        session = copy.deepcopy(prepared)
        fault = FAULTS[kind](position)
        if not raises(partial(case.call, predictor, session), fault):
            continue
        assert not session.control.calls.busy
        with UNDISTURBED[kind]():
            again = case.call(predictor, session)
            if not case.is_repeatable:
                assert [frame for frame, _, _ in again] == [frame for frame, _, _ in expected]
                continue
            assert same(again, expected), f"{kind} {position} {fault.where}"
            if number % 8 == 0:
                assert same(case.probe(predictor, session), expected_probe)


@pytest.mark.reliability("F6", "interrupts")
def test_a_frame_after_a_failed_one_is_not_decoded_from_its_features() -> None:
    predictor = small_predictor()
    expected, session = stream(predictor), stream(predictor)
    for position in (10, 400, 900):
        assert raises(lambda: predictor.step(session, CLIP[8]), FailingOp(position))
    assert same(predictor.step(session, CLIP[4]), predictor.step(expected, CLIP[4]))


def test_faults_raise_where_they_should() -> None:
    predictor = small_predictor()
    session = stream(predictor)
    assert raises(lambda: predictor.step(session, CLIP[4]), FailingOp(0))
    fault = InterruptedLine(0)
    assert raises(lambda: predictor.step(session, CLIP[4]), fault)
    assert fault.where.startswith("transactions.py:")
    assert not raises(lambda: predictor.step(session, CLIP[4]), FailingOp())
