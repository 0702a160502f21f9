"""The whole state of a session as values that can be compared."""

from __future__ import annotations

from typing import Any

from tests.video.conftest import freeze


def state_of(session: Any) -> Any:
    """Everything that a call may change in a session, as values that can be compared."""
    state = session.state
    control = session.control
    frames = session.frames
    stream = None
    if hasattr(frames, "pushed"):
        stream = (frames.pushed, list(frames._frames), frames.height, frames.width)
    plain = {name: state[name] for name in ("obj_ids", "obj_id_to_idx", "obj_idx_to_id")}
    order = [
        [[*track.bank.prompted], [*track.bank.tracked], [*track.previews], [*track.corrections]]
        for track in session.objects.values()
    ]
    return {
        "frozen": freeze(session),
        "plain": repr(plain),
        "order": order,
        "size": session.size,
        "constants": [*state["constants"]],
        "cached": {frame: id(entry) for frame, entry in state["cached_features"].items()},
        "stream": stream,
        "control": (control.resets, sorted(control.return_starts), len(control.unchecked)),
        "busy": control.calls.busy,
    }
