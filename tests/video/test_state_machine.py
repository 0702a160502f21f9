"""Random interaction against a plain model of what a session should hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

FRAMES = 6
frames, ids = st.integers(0, FRAMES - 1), st.integers(1, 3)


@pytest.fixture(autouse=True)
def _machine(predictor: Any, make_clip: Any, snapshot: Any) -> None:
    Interaction.predictor, Interaction.clip, Interaction.freeze = (
        predictor,
        make_clip(FRAMES),
        staticmethod(snapshot),
    )


class Interaction(RuleBasedStateMachine):
    """Expectation: ids in order, which frames each object is prompted on, and masks that a click
    must still show.
    """

    predictor: Any
    clip: Any
    freeze: Any

    def __init__(self) -> None:
        super().__init__()
        self.state = self.predictor.init_state(self.clip)
        self.prompted: dict[int, set[int]] = {}
        self.promised: dict[tuple[int, int], torch.Tensor] = {}

    @rule(
        frame=frames,
        obj=ids,
        x=st.integers(5, 60),
        y=st.integers(5, 40),
        label=st.integers(0, 1),
        add=st.booleans(),
    )
    def click(self, frame: int, obj: int, x: int, y: int, label: int, add: bool) -> None:
        number, found, masks = self.predictor.add_new_points_or_box(
            self.state, frame, obj, [[x, y]], [label], clear_old_points=not add
        )
        self.prompted.setdefault(obj, set()).add(frame)
        self.promised[obj, frame] = masks[found.index(obj)].clone()
        assert number == frame and masks.shape == (len(found), 1, 48, 72)

    @rule(frame=frames, obj=ids, left=st.integers(0, 40))
    def draw(self, frame: int, obj: int, left: int) -> None:
        mask = np.zeros((48, 72), bool)
        mask[5:20, left : left + 20] = True
        _, found, masks = self.predictor.add_new_mask(self.state, frame, obj, mask)
        self.prompted.setdefault(obj, set()).add(frame)
        self.promised[obj, frame] = masks[found.index(obj)].clone()

    @rule(frame=frames, obj=ids)
    def refuse(self, frame: int, obj: int) -> None:
        before = self.freeze(self.state)
        with pytest.raises(ValueError):
            self.predictor.add_new_points_or_box(self.state, frame, obj, [[1, 1]], [5])
        assert self.freeze(self.state) == before

    @rule(obj=ids)
    def remove(self, obj: int) -> None:
        self.predictor.remove_object(self.state, obj)
        self.prompted.pop(obj, None)
        self.promised = {k: v for k, v in self.promised.items() if k[0] != obj}

    @precondition(lambda self: self.prompted)
    @rule(frame=frames, data=st.data())
    def clear(self, frame: int, data: Any) -> None:
        obj = data.draw(st.sampled_from(sorted(self.prompted)))
        self.predictor.clear_all_prompts_in_frame(self.state, frame, obj)
        self.prompted[obj].discard(frame)
        self.promised.pop((obj, frame), None)

    @rule()
    def reset(self) -> None:
        self.predictor.reset_state(self.state)
        self.prompted.clear()
        self.promised.clear()

    @precondition(lambda self: any(self.prompted.values()))
    @rule(start=frames, count=st.integers(0, 3), reverse=st.booleans())
    def propagate(self, start: int, count: int, reverse: bool) -> None:
        if not any(t.bank.prompted or t.previews for t in self.state.objects.values()):
            return
        try:
            for frame, found, masks in self.predictor.propagate_in_video(
                self.state, start, count, reverse
            ):
                assert found == self.state.obj_ids and torch.isfinite(masks).all()
                for i, obj in enumerate(found):
                    if (obj, frame) in self.promised:
                        assert torch.equal(masks[i], self.promised[obj, frame]), (
                            "a prompted frame shows what the prompt returned"
                        )
        except RuntimeError as error:
            assert "no object has a prompt" in str(error)

    @precondition(lambda self: self.prompted)
    @rule(frame=frames, obj=ids)
    def fail(self, frame: int, obj: int) -> None:
        def exhausted(*_: Any) -> None:
            raise torch.OutOfMemoryError("injected")

        before, original = self.freeze(self.state), self.predictor.track
        self.predictor.track = exhausted
        try:
            with pytest.raises(torch.OutOfMemoryError):
                self.predictor.add_new_points_or_box(self.state, frame, obj, [[9, 9]], [1])
        finally:
            del self.predictor.track
        assert self.freeze(self.state) == before and original is not None

    @invariant()
    def the_session_agrees(self) -> None:
        assert set(self.state.obj_ids) == set(self.prompted)
        for obj, track in self.state.objects.items():
            assert set(track.prompts) == self.prompted[obj]
            assert not set(track.bank.prompted) & set(track.bank.tracked)
            assert all(m.map is not None for m in track.bank.prompted.values())


Interaction.TestCase.settings = settings(
    max_examples=25,
    stateful_step_count=12,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


class TestInteraction(Interaction.TestCase):
    """Collected by pytest; the fixture above fills the machine."""
