"""Random interaction with a session, with faults, compared with a simple model of its state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.reliability.faults import FailingOp, InterruptedLine, raises
from tests.reliability.session_state import state_of

FRAMES = 6
frames = st.integers(0, FRAMES - 1)
ids = st.integers(1, 3)
faults = st.one_of(
    st.none(),
    st.builds(FailingOp, st.integers(0, 1200)),
    st.builds(InterruptedLine, st.integers(0, 700)),
)
"""Most calls have fewer operations or lines than the largest number, and then succeed."""


@pytest.fixture(autouse=True)
def _machine(predictor: Any, make_clip: Any) -> None:
    Interaction.predictor = predictor
    Interaction.clip = make_clip(FRAMES)


class Interaction(RuleBasedStateMachine):
    """A session and its expected state."""

    predictor: Any
    clip: Any

    def __init__(self) -> None:
        super().__init__()
        self.state = self.predictor.init_state(self.clip)
        self.prompted: dict[int, set[int]] = {}  # frames by object
        self.returned: dict[tuple[int, int], torch.Tensor] = {}  # masks by object, prompted frame

    def attempt(self, fault: Any, call: Callable[[], Any]) -> bool:
        """Whether a call succeeds; if a fault ends it, the session must be as before."""
        before = state_of(self.state)
        if fault is None or not raises(call, fault):
            if fault is None:
                call()
            return True
        assert state_of(self.state) == before, fault.where
        return False

    @rule(
        frame=frames,
        obj=ids,
        x=st.integers(5, 60),
        y=st.integers(5, 40),
        label=st.integers(0, 1),
        add=st.booleans(),
        fault=faults,
    )
    def click(
        self, frame: int, obj: int, x: int, y: int, label: int, add: bool, fault: Any
    ) -> None:
        output: list[Any] = []

        def call() -> None:
            output[:] = self.predictor.add_new_points_or_box(
                self.state, frame, obj, [[x, y]], [label], clear_old_points=not add
            )

        if not self.attempt(fault, call):
            return
        number, object_ids, masks = output
        self.prompted.setdefault(obj, set()).add(frame)
        self.returned[obj, frame] = masks[object_ids.index(obj)].clone()
        assert number == frame and masks.shape == (len(object_ids), 1, 48, 72)

    @rule(frame=frames, obj=ids, left=st.integers(0, 40), fault=faults)
    def prompt_with_mask(self, frame: int, obj: int, left: int, fault: Any) -> None:
        mask = np.zeros((48, 72), bool)
        mask[5:20, left : left + 20] = True
        output: list[Any] = []

        def call() -> None:
            output[:] = self.predictor.add_new_mask(self.state, frame, obj, mask)

        if not self.attempt(fault, call):
            return
        _, object_ids, masks = output
        self.prompted.setdefault(obj, set()).add(frame)
        self.returned[obj, frame] = masks[object_ids.index(obj)].clone()

    @rule(frame=frames, obj=ids)
    def prompt_with_wrong_label(self, frame: int, obj: int) -> None:
        before = state_of(self.state)
        with pytest.raises(ValueError):
            self.predictor.add_new_points_or_box(self.state, frame, obj, [[1, 1]], [5])
        assert state_of(self.state) == before

    @rule(obj=ids, fault=faults)
    def remove(self, obj: int, fault: Any) -> None:
        if not self.attempt(fault, lambda: self.predictor.remove_object(self.state, obj)):
            return
        self.prompted.pop(obj, None)
        self.returned = {k: v for k, v in self.returned.items() if k[0] != obj}

    @precondition(lambda self: self.prompted)
    @rule(frame=frames, data=st.data(), fault=faults)
    def clear(self, frame: int, data: Any, fault: Any) -> None:
        obj = data.draw(st.sampled_from(sorted(self.prompted)))
        clear = self.predictor.clear_all_prompts_in_frame
        if not self.attempt(fault, lambda: clear(self.state, frame, obj)):
            return
        self.prompted[obj].discard(frame)
        self.returned.pop((obj, frame), None)

    @rule(fault=faults)
    def reset(self, fault: Any) -> None:
        if not self.attempt(fault, lambda: self.predictor.reset_state(self.state)):
            return
        self.prompted.clear()
        self.returned.clear()

    @precondition(lambda self: any(self.prompted.values()))
    @rule(fault=faults)
    def commit(self, fault: Any) -> None:
        preflight = self.predictor.propagate_in_video_preflight
        self.attempt(fault, lambda: preflight(self.state))

    @precondition(lambda self: any(self.prompted.values()))
    @rule(start=frames, count=st.integers(0, 3), reverse=st.booleans(), fault=faults)
    def propagate(self, start: int, count: int, reverse: bool, fault: Any) -> None:
        if not any(t.bank.prompted or t.previews for t in self.state.objects.values()):
            return

        def call() -> None:
            for frame, object_ids, masks in self.predictor.propagate_in_video(
                self.state, start, count, reverse
            ):
                assert object_ids == self.state.obj_ids and torch.isfinite(masks).all()
                for i, obj in enumerate(object_ids):
                    if (obj, frame) in self.returned:
                        assert torch.equal(masks[i], self.returned[obj, frame])

        try:
            if fault is None:
                call()
            else:
                raises(call, fault)  # the finished frames are kept
        except RuntimeError as error:
            assert "no object has a prompt" in str(error)

    @invariant()
    def the_session_has_the_expected_state(self) -> None:
        assert not self.state.control.calls.busy and not self.state.control.unchecked
        assert set(self.state.obj_ids) == set(self.prompted)
        for obj, track in self.state.objects.items():
            assert set(track.prompts) == self.prompted[obj]
            assert not set(track.bank.prompted) & set(track.bank.tracked)
            assert all(m.map is not None for m in track.bank.prompted.values())


Interaction.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=12,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


class TestInteraction(Interaction.TestCase):
    """The test case that pytest collects; the fixture above sets the attributes of the machine."""
