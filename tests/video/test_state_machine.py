"""Random interaction with a session, compared with a simple model of its state."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

FRAMES = 6
frames = st.integers(0, FRAMES - 1)
ids = st.integers(1, 3)


@pytest.fixture(autouse=True)
def _machine(predictor: Any, make_clip: Any, snapshot: Any) -> None:
    Interaction.predictor = predictor
    Interaction.clip = make_clip(FRAMES)
    Interaction.freeze = staticmethod(snapshot)


class Interaction(RuleBasedStateMachine):
    """A session and its expected state."""

    predictor: Any
    clip: Any
    freeze: Any

    def __init__(self) -> None:
        super().__init__()
        self.state = self.predictor.init_state(self.clip)
        self.prompted: dict[int, set[int]] = {}  # frames by object
        self.returned: dict[tuple[int, int], torch.Tensor] = {}  # masks by object, prompted frame

    @rule(
        frame=frames,
        obj=ids,
        x=st.integers(5, 60),
        y=st.integers(5, 40),
        label=st.integers(0, 1),
        add=st.booleans(),
    )
    def click(self, frame: int, obj: int, x: int, y: int, label: int, add: bool) -> None:
        number, object_ids, masks = self.predictor.add_new_points_or_box(
            self.state, frame, obj, [[x, y]], [label], clear_old_points=not add
        )
        self.prompted.setdefault(obj, set()).add(frame)
        self.returned[obj, frame] = masks[object_ids.index(obj)].clone()
        assert number == frame and masks.shape == (len(object_ids), 1, 48, 72)

    @rule(frame=frames, obj=ids, left=st.integers(0, 40))
    def prompt_with_mask(self, frame: int, obj: int, left: int) -> None:
        mask = np.zeros((48, 72), bool)
        mask[5:20, left : left + 20] = True
        _, object_ids, masks = self.predictor.add_new_mask(self.state, frame, obj, mask)
        self.prompted.setdefault(obj, set()).add(frame)
        self.returned[obj, frame] = masks[object_ids.index(obj)].clone()

    @rule(frame=frames, obj=ids)
    def prompt_with_wrong_label(self, frame: int, obj: int) -> None:
        before = self.freeze(self.state)
        with pytest.raises(ValueError):
            self.predictor.add_new_points_or_box(self.state, frame, obj, [[1, 1]], [5])
        assert self.freeze(self.state) == before

    @rule(obj=ids)
    def remove(self, obj: int) -> None:
        self.predictor.remove_object(self.state, obj)
        self.prompted.pop(obj, None)
        self.returned = {k: v for k, v in self.returned.items() if k[0] != obj}

    @precondition(lambda self: self.prompted)
    @rule(frame=frames, data=st.data())
    def clear(self, frame: int, data: Any) -> None:
        obj = data.draw(st.sampled_from(sorted(self.prompted)))
        self.predictor.clear_all_prompts_in_frame(self.state, frame, obj)
        self.prompted[obj].discard(frame)
        self.returned.pop((obj, frame), None)

    @rule()
    def reset(self) -> None:
        self.predictor.reset_state(self.state)
        self.prompted.clear()
        self.returned.clear()

    @precondition(lambda self: any(self.prompted.values()))
    @rule(start=frames, count=st.integers(0, 3), reverse=st.booleans())
    def propagate(self, start: int, count: int, reverse: bool) -> None:
        if not any(t.bank.prompted or t.previews for t in self.state.objects.values()):
            return
        try:
            for frame, object_ids, masks in self.predictor.propagate_in_video(
                self.state, start, count, reverse
            ):
                assert object_ids == self.state.obj_ids and torch.isfinite(masks).all()
                for i, obj in enumerate(object_ids):
                    if (obj, frame) in self.returned:
                        assert torch.equal(masks[i], self.returned[obj, frame])
        except RuntimeError as error:
            assert "no object has a prompt" in str(error)

    @precondition(lambda self: self.prompted)
    @rule(frame=frames, obj=ids)
    def run_out_of_memory(self, frame: int, obj: int) -> None:
        def fail(*_: Any) -> None:
            raise torch.OutOfMemoryError("injected")

        before = self.freeze(self.state)
        self.predictor.track = fail
        try:
            with pytest.raises(torch.OutOfMemoryError):
                self.predictor.add_new_points_or_box(self.state, frame, obj, [[9, 9]], [1])
        finally:
            del self.predictor.track
        assert self.freeze(self.state) == before

    @invariant()
    def the_session_has_the_expected_state(self) -> None:
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
    """The test case that pytest collects; the fixture above sets the attributes of the machine."""
