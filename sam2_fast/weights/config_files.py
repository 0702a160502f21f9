"""Configurations that are read from files: YAML, or what a program's Hydra composes."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sam2_fast.files.reasons import reason_of
from sam2_fast.io.json_files import read_text
from sam2_fast.weights.interpolations import has_interpolations, resolved_model

MAX_YAML_BYTES = 2**16
"""Largest YAML file, in bytes; PyYAML needs seconds for it."""
MAX_YAML_VALUES = 100_000
"""Most values of a YAML file, with repeated ones."""

_EXPONENT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")
_NOT_THE_PROGRAMS = ("pkg://hydra.conf", "structured://", "pkg://sam2")


def read_yaml(path: Path) -> dict[str, Any]:
    """The entry `model` of a YAML file, resolved if OmegaConf is installed.

    Raises ValueError for a file that has none, and for one that only Hydra can read.
    """
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise ValueError(
            f"config_file {path}: reading it needs PyYAML: pip install pyyaml"
        ) from error
    try:
        document = yaml.safe_load(
            read_text(path, "config_file", max_bytes=MAX_YAML_BYTES, advice="shorten it")
        )
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        if str(error).startswith("config_file"):
            raise
        raise ValueError(
            f"config_file {path}: not a readable YAML file: {reason_of(error)}"
        ) from error
    if not isinstance(document, dict) or not isinstance(document.get("model"), dict):
        keys = [*document] if isinstance(document, dict) else type(document).__name__
        raise ValueError(f"config_file {path}: expected the key 'model' with a model, got {keys}")
    if "defaults" in document:
        raise ValueError(
            f"config_file {path}: expected a complete configuration, got one with 'defaults'; "
            "initialise Hydra with its folder (hydra.initialize_config_dir), then pass its name"
        )
    try:
        document = _with_numbers(document, itertools.count())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"config_file {path}: {error}") from error
    tree: dict[str, Any] = document["model"]
    return resolved_model(document, path) if has_interpolations(tree) else tree


def _with_numbers(value: Any, count: Iterator[int]) -> Any:
    """Numbers such as 1e-6, which YAML 1.1 reads as strings, as Hydra reads them.

    count: of the values so far. Names for values (`&a`, `*a`) can repeat them without end.
    """
    if next(count) > MAX_YAML_VALUES:
        raise ValueError(f"has more than {MAX_YAML_VALUES} values")
    if isinstance(value, dict):
        return {key: _with_numbers(child, count) for key, child in value.items()}
    if isinstance(value, list):
        return [_with_numbers(child, count) for child in value]
    is_number = isinstance(value, str) and _EXPONENT.fullmatch(value)
    return float(value) if is_number else value


def composed_by_hydra(name: str, overrides: Sequence[str] = ()) -> dict[str, Any] | None:
    """The entry `model` of a configuration in the folders that a program has given to Hydra.

    None if Hydra is not initialised with other folders than that of the official package, or if
    these have no such configuration. Raises ValueError if it has no model.
    """
    if "hydra.core.global_hydra" not in sys.modules:
        return None
    from hydra.core.global_hydra import GlobalHydra

    hydra = GlobalHydra.instance()
    if not hydra.is_initialized():
        return None
    loader: Any = hydra.config_loader()
    paths = [entry.path for entry in loader.get_search_path().get_path()]
    if not any(path not in _NOT_THE_PROGRAMS for path in paths if path):
        return None
    result = loader.repository.load_config(name)
    if result is None or result.path in _NOT_THE_PROGRAMS:
        return None
    from hydra import compose
    from omegaconf import OmegaConf

    config = compose(config_name=name, overrides=[*overrides])
    if not OmegaConf.is_config(config.get("model")):
        raise ValueError(
            f"config_file {name}: expected the key 'model' with a model, got {[*config]}, from "
            f"{result.path}"
        )
    OmegaConf.resolve(config)
    tree: Any = OmegaConf.to_container(config.model)
    return dict(tree)
