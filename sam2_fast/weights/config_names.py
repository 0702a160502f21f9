"""Configurations by name: official names, YAML files, and those of a program's Hydra."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sam2_fast.config import NANO, PRESETS, Sam2Config, preset
from sam2_fast.weights.config_files import composed_by_hydra, read_yaml
from sam2_fast.weights.config_tree import model_tree

_SIZES = {"t": "tiny", "s": "small", "b+": "base_plus", "l": "large"}
_NAME = re.compile(
    r"(configs/sam2(\.1)?/)?sam2(\.1)?_hiera_(tiny|small|base_plus|large|t|s|b\+|l)(\.yaml)?"
)


def read_config(name: str, others: Sequence[str] = ()) -> Sam2Config | dict[str, Any]:
    """The architecture of a configuration name, or the entry `model` of a configuration file.

    name: "tiny" ... "large", "nano"; an official name such as `configs/sam2.1/sam2.1_hiera_l.yaml`
        or `sam2_hiera_l.yaml`; the path of a YAML file, also with the leading `//`; or the name of
        a configuration in the folders with which the program has initialised Hydra.
    others: overrides of other keys than those of the model, for configurations of Hydra only.
    Files come before official names. Raises ValueError if there is no such name or file, or if the
    file cannot be used.
    """
    text = str(name)
    if (text in PRESETS or text == "nano") and not others:
        return preset(text)
    tree = composed_by_hydra(text, others)
    if tree is None:
        if others:
            raise ValueError(
                f"hydra_overrides_extra: expected overrides of the model, '++model.KEY=VALUE', got "
                f"{others[0]!r}; other keys have an effect in configurations of Hydra only"
            )
        named = text if text.endswith((".yaml", ".yml")) else f"{text}.yaml"
        path = Path(named[1:] if named.startswith("//") else named)
        if path.is_file():
            tree = read_yaml(path)
    if tree is None:
        return read_config_name(text)
    return known_config(tree) or tree


def read_config_name(name: str) -> Sam2Config:
    """The architecture of an official configuration name. Raises ValueError for another name."""
    if name in PRESETS or name == "nano":
        return preset(name)
    match = _NAME.fullmatch(name)
    if not match or (match[1] and match[2] != match[3]):
        raise ValueError(
            f"config_file: expected one of {', '.join(sorted([*PRESETS, 'nano']))}, an official "
            f"name such as configs/sam2.1/sam2.1_hiera_t.yaml, or the path of an existing YAML "
            f"file, got {name!r}"
        )
    return preset(_SIZES.get(match[4], match[4]), version="2.1" if match[3] else "2.0")


def known_config(tree: dict[str, Any]) -> Sam2Config | None:
    """The architecture of a configuration that equals that of a released model, or None."""
    for size in PRESETS:
        for version in ("2.0", "2.1"):
            config = preset(size, version)
            if model_tree(config) == tree:
                return config
    return NANO if model_tree(NANO) == tree else None
