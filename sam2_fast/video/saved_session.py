"""Save the objects of a session to a file, and continue with them in a new session.

The file is in safetensors, which holds no code, and has a JSON description in its header.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sam2_fast.atomic import whole_file
from sam2_fast.memory import FrameMemory, compact
from sam2_fast.model import Sam2
from sam2_fast.video.positions import keep_positions, new_positions
from sam2_fast.video.session import ObjectTrack, VideoSession
from sam2_fast.video.transactions import transact

_FORMAT = "sam2_fast.session"
_VERSION = 1
_TENSORS = ("pointer", "presence", "map", "logits")
_OUTPUTS = ("prompted", "tracked")


def save_session(session: VideoSession, path: str | os.PathLike[str]) -> None:
    """Write the objects of a session, with their prompts and memories. The video is not included.

    Raises ValueError if a prompt is not committed yet (see `propagate_in_video_preflight`), or if
    an object's id is neither an integer nor a string.
    """
    content = transact(session, "save_session", partial(_content, session))
    with whole_file(path) as beside:
        beside.write_bytes(content)


def _content(session: VideoSession) -> bytes:
    if session.has_previews():
        raise ValueError("session: expected committed prompts; call propagate_in_video_preflight")
    tensors: dict[str, Tensor] = {}
    objects = []
    for number, (obj_id, track) in enumerate(session.objects.items()):
        if not isinstance(obj_id, (int, str)):
            raise ValueError(f"session: expected ids of int or str, got {obj_id!r}")
        rows = dict(_tensors_of(track))
        tensors |= {f"{number}/{name}": tensor for name, tensor in rows.items()}
        corrected = [f for f, m in track.bank.tracked.items() if compact(m).corrected]
        passed = [[frame, entry["reverse"]] for frame, entry in track.passed.items()]
        objects.append(
            {"id": obj_id, "tensors": list(rows), "corrected": corrected, "passed": passed}
        )
    description = {"format": _FORMAT, "version": _VERSION, "objects": objects}
    content: bytes = save(
        {name: t.detach().cpu().contiguous() for name, t in tensors.items()},
        metadata={"session": json.dumps(description)},
    )
    return content


def load_session(session: VideoSession, model: Sam2, path: str | os.PathLike[str]) -> None:
    """Add the objects of a file of `save_session` to a session without objects.

    model: the model of the session, with the weights with which the file was saved.
    Raises ValueError if the file is another one or damaged, or if the session has objects.
    """
    transact(session, "load_session", partial(_load, session, model, Path(path)))


def _load(session: VideoSession, model: Sam2, path: Path) -> None:
    if session.obj_ids:
        raise ValueError(f"session: expected one without objects, got {session.obj_ids}")
    tensors, objects = _read(path)
    tracks = []
    memories: list[FrameMemory] = []
    for number, entry in enumerate(objects):
        track = ObjectTrack()
        for name in entry["tensors"]:
            _store(track, name, tensors[f"{number}/{name}"], session)
        for frame in entry["corrected"]:
            track.bank.tracked[frame].corrected = True
        track.passed.update({frame: {"reverse": reverse} for frame, reverse in entry["passed"]})
        memories += [*track.bank.prompted.values(), *track.bank.tracked.values()]
        tracks.append((entry["id"], track))
    with_map = [memory for memory in memories if memory.map is not None]
    if with_map:
        map_ = with_map[0].map
        assert map_ is not None
        positions = new_positions(session, model, map_.dtype)
        for memory in with_map:
            memory.positions = positions
    for obj_id, track in tracks:
        stored = session.add(obj_id)
        for name in ("points", "masks", "passed"):
            getattr(stored, name).update(getattr(track, name))
        stored.bank.prompted.update(track.bank.prompted)
        stored.bank.tracked.update(track.bank.tracked)
    keep_positions(session, with_map)


def _tensors_of(track: ObjectTrack) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of everything that an object stores; names are `kind/frame/field`."""
    for frame, inputs in track.points.items():
        yield f"points/{frame}/coords", inputs["point_coords"]
        yield f"points/{frame}/labels", inputs["point_labels"]
    for frame, mask in track.masks.items():
        yield f"masks/{frame}/mask", mask
    for kind in _OUTPUTS:
        for frame, output in getattr(track.bank, kind).items():
            memory = compact(output)
            for field in _TENSORS:
                value = getattr(memory, field)
                if value is not None:
                    yield f"{kind}/{frame}/{field}", value


def _store(track: ObjectTrack, name: str, tensor: Tensor, session: VideoSession) -> None:
    """Store one tensor of `_tensors_of` in a track, on the device that it belongs to."""
    kind, number, field = name.split("/")
    frame = int(number)
    if kind == "points":
        track.points.setdefault(frame, {})[f"point_{field}"] = tensor.to(session.device)
    elif kind == "masks":
        track.masks[frame] = tensor.to(session.device)
    else:
        outputs = getattr(track.bank, kind)
        if frame not in outputs:
            outputs[frame] = FrameMemory(tensor, tensor)
        on_device = field in ("pointer", "presence")
        setattr(outputs[frame], field, tensor.to(session.device if on_device else session.storage))


def _read(path: Path) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    try:
        with safe_open(path, framework="pt") as file:
            description = json.loads((file.metadata() or {})["session"])
            if (description["format"], description["version"]) != (_FORMAT, _VERSION):
                raise KeyError("format")
            objects: list[dict[str, Any]] = description["objects"]
            names = [f"{n}/{name}" for n, entry in enumerate(objects) for name in entry["tensors"]]
            return {name: file.get_tensor(name) for name in names}, objects
    except (KeyError, TypeError, ValueError, SafetensorError) as error:
        raise ValueError(f"session {path}: not a {_FORMAT} file of version {_VERSION}") from error
