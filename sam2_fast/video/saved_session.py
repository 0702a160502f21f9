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

from sam2_fast.files.atomic import whole_file
from sam2_fast.files.reasons import reason_of
from sam2_fast.io.limits import check_regular
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
    tracks: dict[int | str, ObjectTrack] = {}
    memories: list[FrameMemory] = []
    try:
        for number, entry in enumerate(objects):
            rows = {name: tensors[f"{number}/{name}"] for name in entry["tensors"]}
            _check_rows(rows, model)
            if not isinstance(entry["id"], (int, str)) or entry["id"] in tracks:
                raise ValueError(f"object {number}: expected an id of its own")
            track = tracks[entry["id"]] = _track_of(rows, entry, session)
            memories += [*track.bank.prompted.values(), *track.bank.tracked.values()]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"session {path}: is damaged or of another model ({reason_of(error)})"
        ) from error
    with_map = [memory for memory in memories if memory.map is not None]
    if with_map:
        map_ = with_map[0].map
        assert map_ is not None
        positions = new_positions(session, model, map_.dtype)
        for memory in with_map:
            memory.positions = positions
    for obj_id, track in tracks.items():
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


def _check_rows(rows: dict[str, Tensor], model: Sam2) -> None:
    """Raise ValueError unless the tensors of an object are whole, and of this model."""
    config = model.config
    logits = (1, 4 * config.grid, 4 * config.grid)
    shapes = {
        "pointer": (config.hidden_dim,),
        "presence": (1,),
        "map": (config.grid**2, config.memory_dim),
        "logits": logits,
        "mask": (1, 1, config.image_size, config.image_size),
    }
    for name, tensor in rows.items():
        kind, frame, field = name.split("/")
        fields = {"points": ("coords", "labels"), "masks": ("mask",)}.get(kind, _TENSORS)
        if kind not in ("points", "masks", *_OUTPUTS) or field not in fields:
            raise ValueError(f"unknown entry {name:.100}")
        if str(int(frame)) != frame or int(frame) < 0:
            raise ValueError(f"{name:.100}: expected the number of a frame")
        if any(f"{kind}/{frame}/{other}" not in rows for other in fields[:2]):
            raise ValueError(f"{name}: other entries of its frame are missing")
        if field in shapes and tensor.shape != shapes[field]:
            raise ValueError(f"{name}: expected {shapes[field]}, got {tuple(tensor.shape)}")
        if field == "coords":
            labels = rows[f"{kind}/{frame}/labels"]
            if tensor.dim() != 3 or tensor.shape[2] != 2 or labels.shape != tensor.shape[:2]:
                raise ValueError(f"{name}: expected points [1, N, 2] with labels [1, N]")


def _track_of(rows: dict[str, Tensor], entry: dict[str, Any], session: VideoSession) -> ObjectTrack:
    """The track of an object. entry: its description in the header of the file."""
    track = ObjectTrack()
    for name, tensor in rows.items():
        _store(track, name, tensor, session)
    for frame in entry["corrected"]:
        track.bank.tracked[frame].corrected = True
    for frame, reverse in entry["passed"]:
        if type(frame) is not int or type(reverse) is not bool:
            raise ValueError(f"passed: expected frames and directions, got {frame!r:.50}")
        track.passed[frame] = {"reverse": reverse}
    return track


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
    check_regular(path, f"session {path}")
    try:
        with safe_open(path, framework="pt") as file:
            description = json.loads((file.metadata() or {})["session"])
            if (description["format"], description["version"]) != (_FORMAT, _VERSION):
                raise KeyError("format")
            objects: list[dict[str, Any]] = description["objects"]
            names = [f"{n}/{name}" for n, entry in enumerate(objects) for name in entry["tensors"]]
            return {name: file.get_tensor(name) for name in names}, objects
    except (KeyError, TypeError, ValueError, RecursionError, OSError, SafetensorError) as error:
        raise ValueError(f"session {path}: not a {_FORMAT} file of version {_VERSION}") from error
