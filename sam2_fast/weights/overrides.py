"""Hydra override strings, parsed without Hydra."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, NamedTuple

from sam2_fast.config import FIXED_SETTINGS, Options, Sam2Config

_OVERRIDE = re.compile(r"^(\+\+|\+|~)?([A-Za-z_][\w.]*)(=(.*))?$", re.DOTALL)
_EXTRA = "sam_mask_decoder_extra_args"
_CONFIG_KEYS = {
    "image_size": "image_size",
    "image_encoder.trunk.drop_path_rate": "drop_path_rate",
}
_OPTIONS = {option.name for option in fields(Options)}


class Override(NamedTuple):
    """One override. prefix: "++", "+", "~" or "". key: of a model, without `model.`, or another."""

    text: str
    prefix: str
    key: str
    value: Any
    of_model: bool

    @property
    def is_plain(self) -> bool:
        """Whether it changes an option, or a field of `Sam2Config`, and no part."""
        key = self.key.removeprefix(f"{_EXTRA}.")
        return key in _CONFIG_KEYS or key in FIXED_SETTINGS or key in _OPTIONS


def parse_overrides(overrides: Sequence[str]) -> list[Override]:
    """The overrides `++model.a=b`, `+model.a=b`, `model.a=b` or `~model.a`.

    Raises ValueError for other strings.
    """
    parsed = []
    for text in overrides:
        match = _OVERRIDE.match(text.strip()) if isinstance(text, str) else None
        if not match or (match[1] != "~" and match[3] is None):
            raise ValueError(
                f"hydra_overrides_extra: expected strings such as '++model.image_size=512', got "
                f"{text!r}"
            )
        key = match[2].removeprefix("model.")
        of_model = key != match[2]
        value = _value(match[4] or "", text) if of_model else match[4]
        parsed.append(Override(text, match[1] or "", key, value, of_model))
    return parsed


def apply_plain(
    config: Sam2Config, options: Options, overrides: Sequence[Override]
) -> tuple[Sam2Config, Options]:
    """A configuration and options with plain overrides applied; of equal keys the last one counts.

    Raises ValueError for a value that no released model has.
    """
    for override in overrides:
        key = override.key.removeprefix(f"{_EXTRA}.")
        delete, value = override.prefix == "~", override.value
        if key in _CONFIG_KEYS:
            name = _CONFIG_KEYS[key]
            config = replace(config, **{name: getattr(Sam2Config(), name) if delete else value})
        elif key in FIXED_SETTINGS:
            _require_fixed(key, override)
        else:
            value = getattr(Options(), key) if delete else value
            options = options.updated(**{key: value})
    return config, options


def check_values(overrides: Sequence[Override]) -> None:
    """Raise ValueError for a value of an option that no model can work with."""
    for override in overrides:
        key = override.key.removeprefix(f"{_EXTRA}.")
        if override.is_plain and override.prefix != "~" and key not in FIXED_SETTINGS:
            apply_plain(Sam2Config(), Options(), [override])


def _require_fixed(key: str, override: Override) -> None:
    if override.prefix != "~" and override.value != FIXED_SETTINGS[key]:
        raise ValueError(
            f"hydra_overrides_extra: {override.text!r} is not supported; every released model has "
            f"{key}={FIXED_SETTINGS[key]}"
        )


def apply_to_tree(tree: dict[str, Any], overrides: Sequence[Override]) -> None:
    """Change the configuration of a model in place, as Hydra does.

    `key=value` must name a key that exists, `+key=value` one that does not; `++` names either, and
    `~key` deletes. Raises ValueError for a key that does not fit.
    """
    for override in overrides:
        *parents, name = override.key.split(".")
        level = tree
        for parent in parents:
            if override.prefix in ("+", "++"):
                level.setdefault(parent, {})
            child = level.get(parent)
            if not isinstance(child, dict):
                raise ValueError(
                    f"hydra_overrides_extra: {override.text!r} names the key {override.key!r}, but "
                    f"{parent!r} is {child!r} in the configuration; known are {', '.join(level)}"
                )
            level = child
        expected = {"+": False, "++": name in level}.get(override.prefix, True)
        if (name in level) is not expected:
            raise ValueError(
                f"hydra_overrides_extra: {override.text!r} names the key {override.key!r}, which "
                f"{'exists' if name in level else 'does not exist'}; write ++ to set it anyway"
            )
        if override.prefix == "~":
            del level[name]
        else:
            level[name] = override.value


def _value(text: str, override: str) -> Any:
    """The value of an override: a number, bool, None, string, or a list of these in brackets."""
    text = text.strip()
    if text.startswith("[") and text.endswith("]"):
        parts = text[1:-1].split(",") if text[1:-1].strip() else []
        if not any(character in text[1:-1] for character in "[]{}"):
            return [_value(part, override) for part in parts]
    if text[:1] in ("[", "{") or "${" in text:
        raise ValueError(
            f"hydra_overrides_extra: expected a value or a list of values, got {override!r}; set "
            "the keys of a dictionary one by one, without interpolations"
        )
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    word = text.lower()
    if word in ("true", "false"):
        return word == "true"
    if word == "null":
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
