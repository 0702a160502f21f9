"""Official configuration names and Hydra override strings, parsed without Hydra.

So no string can name code.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from sam2_fast.config import FIXED_SETTINGS, PRESETS, Options, Sam2Config, preset

_SIZES = {"t": "tiny", "s": "small", "b+": "base_plus", "l": "large"}
_NAME = re.compile(r"sam2(\.1)?_hiera_(tiny|small|base_plus|large|t|s|b\+|l)(\.yaml)?$")
_OVERRIDE = re.compile(r"^(\+\+|\+|~)?([A-Za-z_][\w.]*)(=(.*))?$", re.DOTALL)

_FIXED: dict[str, Any] = {**FIXED_SETTINGS, "num_maskmem": 7}
_CONFIG_KEYS = {
    "image_size": "image_size",
    "image_encoder.trunk.drop_path_rate": "drop_path_rate",
    "memory_attention.layer.dropout": "dropout",
}
_IGNORED = ("compile_image_encoder", "_target_")  # about the official code only


def read_config_name(name: str) -> Sam2Config:
    """The architecture of a configuration name.

    name: "tiny" ... "large", "nano", `configs/sam2.1/sam2.1_hiera_l.yaml`, a path to such a file
        (also with the leading `//`), or the older `sam2_hiera_l.yaml`. The file itself is not read.
    Raises ValueError for another name.
    """
    if name in PRESETS or name == "nano":
        return preset(name)
    match = _NAME.search(str(name))
    if not match:
        raise ValueError(
            f"config_file: expected one of {', '.join(sorted([*PRESETS, 'nano']))} or an official "
            f"name such as configs/sam2.1/sam2.1_hiera_t.yaml, got {name!r}"
        )
    return preset(_SIZES.get(match[2], match[2]), version="2.1" if match[1] else "2.0")


def apply_overrides(
    config: Sam2Config, options: Options, overrides: Sequence[str]
) -> tuple[Sam2Config, Options]:
    """A configuration and options with Hydra overrides applied.

    overrides: `++model.a=b`, `+model.a=b`, `model.a=b` or `~model.a`; of equal keys the last one
        counts. Raises ValueError for a key that no released configuration has.
    """
    for text in overrides:
        match = _OVERRIDE.match(text.strip()) if isinstance(text, str) else None
        if not match or (match[1] != "~" and match[3] is None):
            raise ValueError(
                f"hydra_overrides_extra: expected strings such as '++model.image_size=512', got "
                f"{text!r}"
            )
        key = match[2].removeprefix("model.").removeprefix("sam_mask_decoder_extra_args.")
        config, options = _apply(
            config, options, key, match[1] == "~", _value(match[4] or ""), text
        )
    return config, options


def _apply(
    config: Sam2Config, options: Options, key: str, delete: bool, value: Any, text: str
) -> tuple[Sam2Config, Options]:
    if key in _IGNORED:
        return config, options
    if key in _CONFIG_KEYS:
        name = _CONFIG_KEYS[key]
        return replace(config, **{name: getattr(Sam2Config(), name) if delete else value}), options
    if key in _FIXED:
        if not delete and value != _FIXED[key]:
            raise ValueError(
                f"hydra_overrides_extra: {text!r} is not supported; every released model has "
                f"{key}={_FIXED[key]}"
            )
        return config, options
    if key in {f.name for f in fields(Options)}:
        return config, options.updated(**{key: getattr(Options(), key) if delete else value})
    raise ValueError(
        f"hydra_overrides_extra: {text!r} names the unknown key {key!r}; known are "
        f"{', '.join(_CONFIG_KEYS)} and the fields of Options"
    )


def _value(text: str) -> Any:
    text = text.strip().strip("'\"")
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
