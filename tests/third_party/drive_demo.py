"""drive_demo.py BACKEND_SERVER FRAMES RESULT.json: a user of the official demo's backend, through
its own request classes.
"""

from __future__ import annotations

import json
import sys
from typing import Any

server, frames, result = sys.argv[1:4]
sys.path.insert(0, server)
from inference import data_types as requests  # noqa: E402
from inference.predictor import InferenceAPI  # noqa: E402

api = InferenceAPI()
session = api.start_session(
    requests.StartSessionRequest(type="start_session", path=frames)
).session_id
messages: list[dict[str, Any]] = []


def note(*responses: Any) -> None:
    messages.extend(response.to_dict() for response in responses)


def click(frame: int, thing: int, points: list[list[float]], labels: list[int]) -> None:
    request = requests.AddPointsRequest(
        type="add_points",
        session_id=session,
        frame_index=frame,
        clear_old_points=True,
        object_id=thing,
        labels=labels,
        points=points,
    )
    note(api.add_points(request))


def propagate() -> None:
    request = requests.PropagateInVideoRequest(
        type="propagate_in_video", session_id=session, start_frame_index=1
    )
    note(*api.propagate_in_video(request))


click(1, 0, [[0.3, 0.4]], [1])
click(1, 1, [[0.6, 0.7], [0.1, 0.1]], [1, 0])
propagate()
note(
    api.remove_object(
        requests.RemoveObjectRequest(type="remove_object", session_id=session, object_id=1)
    )
)
note(
    api.clear_points_in_video(
        requests.ClearPointsInVideoRequest(type="clear_points_in_video", session_id=session)
    )
)
click(1, 5, [[0.5, 0.5]], [1])
note(
    api.clear_points_in_frame(
        requests.ClearPointsInFrameRequest(
            type="clear", session_id=session, frame_index=1, object_id=5
        )
    )
)
note(api.close_session(requests.CloseSessionRequest(type="close_session", session_id=session)))
with open(result, "w") as file:
    json.dump(messages, file)
