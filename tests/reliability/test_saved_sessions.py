"""A damaged file of a session is refused with its name, and adds no object."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from sam2_fast.video.saved_session import load_session, save_session
from tests.video.sessions import frames, small_predictor

Tensors = dict[str, torch.Tensor]
Change = Callable[[list[dict[str, Any]], Tensors], object]


@pytest.fixture(scope="module")
def predictor() -> Any:
    return small_predictor()


@pytest.fixture(scope="module")
def saved(predictor: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    state = predictor.init_state(frames(3))
    predictor.add_new_points_or_box(state, 0, 1, points=[[18, 20]], labels=[1])
    predictor.add_new_mask(state, 0, 2, np.ones((60, 80), bool))
    for _ in predictor.propagate_in_video(state):
        pass
    path = tmp_path_factory.mktemp("session") / "session.safetensors"
    save_session(state, path)
    return path


def key(tensors: Tensors, end: str) -> str:
    return next(name for name in tensors if name.endswith(end))


def renamed(objects: list[dict[str, Any]], tensors: Tensors, name: str) -> None:
    old = objects[0]["tensors"][0]
    objects[0]["tensors"][0] = name
    tensors[f"0/{name}"] = tensors[f"0/{old}"].clone()


CHANGES: dict[str, Change] = {
    "no tensors": lambda o, t: o[0].pop("tensors"),
    "no corrected": lambda o, t: o[0].pop("corrected"),
    "corrected frame": lambda o, t: o[0].update(corrected=[99]),
    "passed": lambda o, t: o[0].update(passed=[[0]]),
    "passed direction": lambda o, t: o[0].update(passed=[[0, "x"]]),
    "id": lambda o, t: o[0].update(id=[1]),
    "id twice": lambda o, t: o[1].update(id=1),
    "object": lambda o, t: o.append(7),
    "kind": lambda o, t: renamed(o, t, "__class__/0/coords"),
    "field": lambda o, t: renamed(o, t, "points/0/__dict__"),
    "frame": lambda o, t: renamed(o, t, "points/x/coords"),
    "negative frame": lambda o, t: renamed(o, t, "points/-1/coords"),
    "name": lambda o, t: renamed(o, t, "points"),
    "pointer": lambda o, t: t.update({key(t, "pointer"): torch.zeros(3)}),
    "map": lambda o, t: t.update({key(t, "/map"): torch.zeros(2, 2)}),
    "logits": lambda o, t: t.update({key(t, "logits"): torch.zeros(1)}),
    "coords": lambda o, t: t.update({key(t, "coords"): torch.zeros(1, 2)}),
    "mask": lambda o, t: t.update({key(t, "mask"): torch.zeros(9)}),
}


@pytest.mark.reliability("F19", "38")
@pytest.mark.parametrize("name", CHANGES)
def test_a_damaged_session_adds_no_object(
    name: str, predictor: Any, saved: Path, tmp_path: Path
) -> None:
    with safe_open(saved, framework="pt") as file:
        description = json.loads(file.metadata()["session"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    CHANGES[name](description["objects"], tensors)
    path = tmp_path / "damaged.safetensors"
    save_file(tensors, path, {"session": json.dumps(description)})
    state = predictor.init_state(frames(3))
    with pytest.raises(ValueError, match=r"damaged\.safetensors"):
        load_session(state, predictor, path)
    assert state.obj_ids == []
    load_session(state, predictor, saved)
    assert state.obj_ids == [1, 2]


@pytest.mark.reliability("38")
def test_pipes_and_nested_descriptions_are_refused(
    predictor: Any, saved: Path, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "a.safetensors")
    save_file({}, tmp_path / "b.safetensors", {"session": "[" * 100_000})
    for name in "ab":
        state = predictor.init_state(frames(3))
        with pytest.raises(ValueError, match=rf"{name}\.safetensors"):
            load_session(state, predictor, tmp_path / f"{name}.safetensors")
