"""Sessions of shared predictors in many threads, in all modes, equal serial ones."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest
import torch

from tests.reliability.racing import race
from tests.reliability.session_calls import CLICK, same
from tests.video.conftest import moving_frames, small_predictor

SESSIONS = 8
MODES: list[Callable[[], Any]] = [
    lambda: torch.autocast("cpu", torch.bfloat16),
    torch.no_grad,
    torch.inference_mode,
    torch.enable_grad,
]


def use(predictors: list[Any], thread: int) -> list[Any]:
    """The results of several interleaved sessions, in the mode of the thread."""
    results: list[Any] = []
    with ExitStack() as stack:
        stack.enter_context(MODES[thread % len(MODES)]())
        passes = []
        for number in range(SESSIONS):
            predictor = predictors[(thread + number) % len(predictors)]
            clip = moving_frames(3, seed=8 * thread + number)
            if number % 2:
                session = predictor.init_state(clip, keep="all" if number % 4 == 1 else "reachable")
            else:
                session = predictor.init_state(None)
                predictor.step(session, clip[0])
            output = predictor.add_new_points_or_box(session, 0, number, **CLICK)
            results.append(output[2].clone())
            passes.append(outputs_of(predictor, session, clip))
        for _ in range(2):
            results += [next(frames) for frames in passes]
    return results


def outputs_of(predictor: Any, session: Any, clip: Any) -> Any:
    if session.num_frames is None:
        for frame in clip[1:]:
            yield predictor.step(session, frame)[2].clone()
        return
    for frame, ids, masks in predictor.propagate_in_video(session):
        yield masks.clone()
        predictor.add_new_points_or_box(session, frame, ids[0], points=[[30, 20]], labels=[1])


@pytest.mark.reliability("37")
def test_sessions_in_threads_of_all_modes_and_dtypes_equal_serial_ones() -> None:
    predictors = [small_predictor(), small_predictor().bfloat16()]
    serial = [use(copy.deepcopy(predictors), thread) for thread in range(8)]
    calls = [partial(use, predictors, thread) for thread in range(8)]
    parallel = [results[0] for results in race(*calls, seconds=280)]
    assert [same(a, b) for a, b in zip(serial, parallel, strict=True)] == [True] * 8
