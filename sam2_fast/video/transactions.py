"""Calls that change a session completely or, if they raise, not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial, wraps
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from sam2_fast.video.finite import Verdict
from sam2_fast.video.inference_state import session_of
from sam2_fast.video.journal import Journal
from sam2_fast.video.session import Control, ObjectTrack, VideoSession

MAX_UNCHECKED = 8
"""Frames that may still be unchecked on a GPU. With more, the host waits for the oldest one: it is
ahead of the device by as many frames."""

Output = TypeVar("Output")
Method = TypeVar("Method", bound=Callable[..., Any])


def transact(
    session: VideoSession, verb: str, work: Callable[[], Output], is_frame: bool = False
) -> Output:
    """`work()` as one call on a session, named `verb` in errors.

    If it raises, at whatever line, the session is as before. Raises RuntimeError if another call
    uses the session, and FloatingPointError for results that are not finite.
    is_frame: the call tracks one frame of many, so it does not wait for the checks of the others.
    """
    journal = Journal()
    control = session.control
    try:
        with torch.inference_mode(), control.calls.call(verb):
            settle(control, wait=not is_frame)
            control.journal = journal
            if "cached_features" in session.state:
                journal.set(session.state, "cached_features", session.state["cached_features"])
            output = work()
            if journal.verdicts:
                journal.append(control.unchecked, journal)
            control.journal = None
        return output
    except BaseException:
        journal.undo()
        raise


def transaction(method: Method) -> Method:
    """A method of a predictor, with `inference_state` as its first argument, by `transact`."""

    @wraps(method)
    def call(self: Any, inference_state: Any, *arguments: Any, **keywords: Any) -> Any:
        session = session_of(inference_state)
        work = partial(method, self, session, *arguments, **keywords)
        return transact(session, method.__name__, work, is_frame=method.__name__ == "step")

    return cast(Method, call)


def settle(control: Control, wait: bool) -> None:
    """Raise the FloatingPointError of an earlier frame, if there is one.

    The session is then as before that frame.
    wait: for all frames; otherwise only for those that are known or many frames old.
    """
    unchecked = control.unchecked
    while unchecked:
        verdicts = unchecked[0].verdicts
        may_wait = wait or len(unchecked) > MAX_UNCHECKED
        if not may_wait and not all(verdict.is_known() for verdict in verdicts):
            return
        errors = [error for error in (verdict.error() for verdict in verdicts) if error]
        if errors:
            newest, *earlier = reversed(unchecked)
            newest.undo(*earlier)
            raise errors[0]
        unchecked.pop(0)


def check_finite(
    session: VideoSession, frame: int, tracks: Sequence[ObjectTrack], results: dict[str, Tensor]
) -> None:
    """Raise FloatingPointError if results [N, ...] of N objects are not finite.

    On a GPU it is raised later, by `settle`.
    """
    verdict = Verdict(frame, [track.obj_id for track in tracks], results)
    if verdict.is_known() and (error := verdict.error()) is not None:
        raise error
    if not verdict.is_known():
        session.journal.verdicts.append(verdict)


_OUTPUTS = {
    "pred_masks": "mask",
    "obj_ptr": "pointer",
    "object_score_logits": "presence",
    "maskmem_features": "memory map",
}


def check_output(
    session: VideoSession, frame: int, track: ObjectTrack, output: Mapping[str, Any]
) -> None:
    """`check_finite` for the output of an official step, of one object."""
    results = {_OUTPUTS[key]: output.get(key) for key in _OUTPUTS}
    tensors = {name: x for name, x in results.items() if isinstance(x, Tensor)}
    if tensors:
        check_finite(session, frame, [track], tensors)
