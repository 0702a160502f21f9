"""Read a checkpoint of training, and check all of it before anything is changed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sam2_fast.model import Sam2
from sam2_fast.training.recipe import Recipe
from sam2_fast.weights.checkpoint import CheckpointError, check_weights, read_file

_KEYS = {"model", "optimizer", "step", "recipe"}
_MOMENTS = ("exp_avg", "exp_avg_sq")
_DERIVED = ("params", "lr")
"""Entries of a group that follow from the model and the step."""


class Progress(NamedTuple):
    """The content of a checkpoint. average: of the weights by name; empty without an average."""

    weights: dict[str, Tensor]
    average: dict[str, Tensor]
    optimizer: dict[str, Any]
    step: int


def read_progress(path: Path, recipe: Recipe, model: Sam2) -> Progress:
    """The checkpoint of a training run by `recipe`; changes nothing.

    Raises FileNotFoundError, or CheckpointError, which names the file.
    """
    name = f"checkpoint {path}"
    content = read_file(path)
    if not isinstance(content, dict) or not set(content) >= _KEYS:
        raise CheckpointError(
            f"{name}: expected a training checkpoint with the keys model, optimizer, step and "
            f"recipe"
        )
    if content["recipe"] != recipe.text():
        raise CheckpointError(
            f"{name}: was trained by another recipe: {str(content['recipe'])[:1000]}"
        )
    step = content["step"]
    if type(step) is not int or not 0 <= step <= recipe.steps:
        raise CheckpointError(f"{name}: step: expected 0 to {recipe.steps}, got {step!r:.100}")
    saved = content["model"]
    weights = content.get("raw", {}) if recipe.ema else saved
    for state in (saved, weights):
        if not isinstance(state, Mapping) or not all(isinstance(t, Tensor) for t in state.values()):
            raise CheckpointError(f"{name}: expected tables of weights, got other entries")
        check_weights(model, state, name)
    average = {key: saved[key] for key, _ in model.named_parameters()} if recipe.ema else {}
    return Progress(dict(weights), average, content["optimizer"], step)


def load_optimizer(optimizer: torch.optim.Optimizer, state: Any, name: str) -> None:
    """Load the state dict of an optimizer into a new one.

    Raises CheckpointError, which starts with `name`, unless it is one of the same parameters and
    settings.
    """
    reason = _misfit(optimizer, state)
    if reason is not None:
        raise CheckpointError(f"{name}: optimizer: {reason}")
    optimizer.load_state_dict(state)


def _misfit(optimizer: torch.optim.Optimizer, state: Any) -> str | None:
    """Why a state dict is not one of this optimizer, or None."""
    current = optimizer.state_dict()["param_groups"]
    groups = state.get("param_groups") if isinstance(state, dict) else None
    entries = state.get("state") if isinstance(state, dict) else None
    if not isinstance(groups, list) or not isinstance(entries, dict):
        return "expected a state with param_groups and state"
    if len(groups) != len(current):
        return f"expected {len(current)} groups, got {len(groups)}"
    for expected, group in zip(current, groups, strict=True):
        if not isinstance(group, dict) or group.get("params") != expected["params"]:
            return "expected groups of the parameters of the model"
        rate = group.get("lr")
        if not isinstance(rate, float) or not math.isfinite(rate):
            return f"expected a finite lr, got {rate!r:.100}"
        for key in set(expected) - set(_DERIVED):
            if key in group and _plain(group[key]) != _plain(expected[key]):
                return f"{key}: expected {expected[key]!r}, got {group[key]!r:.100}"
        if unknown := sorted(map(str, set(group) - set(expected))):
            return f"unknown entry {unknown[0]:.100}"
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if not set(entries) <= set(range(len(parameters))):
        return "has state of parameters that the model does not have"
    for number, entry in entries.items():
        if not isinstance(entry, dict) or set(entry) != {"step", *_MOMENTS}:
            return f"parameter {number}: expected step, exp_avg and exp_avg_sq"
        shapes = {getattr(entry[key], "shape", None) for key in _MOMENTS}
        count = entry["step"]
        if shapes != {parameters[number].shape} or not isinstance(count, Tensor) or count.dim():
            return f"parameter {number}: expected moments {[*parameters[number].shape]}"
    return None


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value
