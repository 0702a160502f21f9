"""Results that are not finite raise, change nothing, and the next frame recovers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from sam2_fast.types import Features
from sam2_fast.video import finite, transactions
from tests.reliability.session_calls import CLICK, CLIP, corrected, same, stream
from tests.reliability.session_state import state_of
from tests.video.conftest import moving_frames, small_predictor

pytestmark = pytest.mark.reliability("F2", "40")


@pytest.fixture(scope="module")
def predictor() -> Any:
    return small_predictor()


@contextmanager
def spoiled_features(predictor: Any, value: float = float("nan")) -> Iterator[None]:
    """Features of all frames that are encoded meanwhile have one value that is not finite."""
    encode = predictor.encode_image

    def spoiled(images: torch.Tensor) -> Features:
        features = encode(images)
        low = features.low.clone()
        low[0, 0, 0, 0] = value
        return features._replace(low=low)

    predictor.encode_image = spoiled
    try:
        yield
    finally:
        del predictor.encode_image


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_frame_of_a_stream_raises_and_the_next_one_recovers(
    predictor: Any, value: float
) -> None:
    session, expected = stream(predictor), stream(predictor)
    before = state_of(session)
    with (
        spoiled_features(predictor, value),
        pytest.raises(FloatingPointError, match=r"^frame 4: expected finite results, got NaN or"),
    ):
        predictor.step(session, CLIP[4])
    assert state_of(session) == before
    for frame in (CLIP[5], *moving_frames(30)):
        assert same(predictor.step(session, frame), predictor.step(expected, frame))


def test_the_error_names_the_object_and_its_results(predictor: Any) -> None:
    session = stream(predictor)
    predictor.add_new_points_or_box(session, 3, "second", **CLICK)
    track = predictor.track

    def spoiled(*arguments: Any) -> Any:
        logits, pointer, presence = track(*arguments)
        pointer = pointer.clone()
        pointer[-1, 3] = float("nan")
        return logits, pointer, presence

    predictor.track = spoiled
    try:
        with pytest.raises(FloatingPointError) as error:
            predictor.step(session, CLIP[4])
    finally:
        del predictor.track
    assert "for object 'second' (pointer); nothing of" in str(error.value)


CALLS: dict[str, Callable[[Any, Any], Any]] = {
    "click": lambda p, s: p.add_new_points_or_box(s, 6, 1, **CLICK),
    "new object": lambda p, s: p.add_new_points_or_box(s, 6, "new", **CLICK),
    "mask": lambda p, s: p.add_new_mask(s, 6, 1, CLIP[6, ..., 0] > 140),
    "commit": lambda p, s: p.propagate_in_video_preflight(s),
    "pass": lambda p, s: list(p.propagate_in_video(s, 6, 1)),
}


@pytest.mark.parametrize("name", CALLS)
def test_every_call_raises_and_changes_nothing(predictor: Any, name: str) -> None:
    session = corrected(predictor)
    predictor.add_new_points_or_box(session, 7, 1, **CLICK)
    if name == "pass":
        predictor.propagate_in_video_preflight(session)
    before = state_of(session)
    session["cached_features"] = {}
    with spoiled_features(predictor), pytest.raises(FloatingPointError, match=r"^frame [3-7]: "):
        CALLS[name](predictor, session)
    assert {**state_of(session), "cached": 0} == {**before, "cached": 0}
    assert session["cached_features"] == {}
    CALLS[name](predictor, session)


# on a GPU the answer is known later


class Later:
    """Makes verdicts known when the test says so, as on a device that computes asynchronously."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.known = False
        self.waits = 0
        later = self

        class Verdict(finite.Verdict):
            def is_known(self) -> bool:
                return later.known

            def error(self) -> FloatingPointError | None:
                later.waits += not later.known
                return super().error()

        monkeypatch.setattr(transactions, "Verdict", Verdict)


def test_frames_of_a_device_do_not_wait_until_many_are_unchecked(
    predictor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, expected = stream(predictor), stream(predictor)
    later = Later(monkeypatch)
    for frame in CLIP[: transactions.MAX_UNCHECKED]:
        predictor.step(session, frame)
    assert later.waits == 0 and len(session.control.unchecked) == transactions.MAX_UNCHECKED
    for frame in CLIP:
        predictor.step(session, frame)
    assert later.waits == 9 and len(session.control.unchecked) == transactions.MAX_UNCHECKED + 1
    later.known = True
    for frame in (*CLIP[: transactions.MAX_UNCHECKED], *CLIP):
        predictor.step(expected, frame)
    assert same(predictor.step(session, CLIP[2]), predictor.step(expected, CLIP[2]))
    assert session.control.unchecked == []


@pytest.mark.parametrize("good_frames", [0, 2])
def test_a_late_error_restores_the_session_before_the_bad_frame(
    predictor: Any, monkeypatch: pytest.MonkeyPatch, good_frames: int
) -> None:
    session, expected = stream(predictor), stream(predictor)
    later = Later(monkeypatch)
    for frame in CLIP[:good_frames]:
        predictor.step(session, frame)
    with spoiled_features(predictor):
        predictor.step(session, CLIP[4])
    predictor.step(session, CLIP[5])
    predictor.step(session, CLIP[6])
    later.known = True
    with pytest.raises(FloatingPointError, match=rf"^frame {4 + good_frames}: "):
        predictor.step(session, CLIP[7])
    assert session.control.unchecked == []
    for frame in CLIP[:good_frames]:
        predictor.step(expected, frame)
    for frame in CLIP[7:]:
        assert same(predictor.step(session, frame), predictor.step(expected, frame))


def test_a_prompt_and_the_end_of_a_pass_wait_for_all_frames(
    predictor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = corrected(predictor)
    predictor.propagate_in_video_preflight(session)
    before = state_of(session)
    Later(monkeypatch)
    frames = []
    with spoiled_features(predictor), pytest.raises(FloatingPointError, match=r"^frame 6: "):
        for frame, _, _ in predictor.propagate_in_video(session, 6, 2):
            frames.append(frame)
    assert frames == [6, 7, 8] and state_of(session) == before
    streamed = stream(predictor)
    with spoiled_features(predictor):
        predictor.step(streamed, CLIP[4])
    with pytest.raises(FloatingPointError, match=r"^frame 4: "):
        predictor.add_new_points_or_box(streamed, 3, 1, **CLICK)
    predictor.add_new_points_or_box(streamed, 3, 1, **CLICK)
