"""`Sam2` with the attributes and methods of the official `SAM2Base` that other programs use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Any

from sam2_fast.config import DECODER_OPTIONS, FIXED_SETTINGS, VERSION_SETTINGS, Options
from sam2_fast.model import Sam2
from sam2_fast.official.construction import read_arguments
from sam2_fast.official.steps import OfficialSteps


class SAM2Base(OfficialSteps):
    """The model with the official API.

    Its steps are in `official/steps.py`, and its options are attributes.
    """

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        """`SAM2Base(config, options)`, or the arguments of the official constructor.

        Those are image_encoder, memory_attention, memory_encoder and the settings in
        `official.construction.SETTINGS`, with the official order and defaults.
        Raises TypeError for other arguments, and ValueError for an architecture that no model of
        this library has.
        """
        construction = read_arguments(arguments, keywords)
        super().__init__(construction.config, construction.options, construction.parts)
        if construction.compile_image_encoder:
            self.image_encoder.trunk.compile(fullgraph=True)

    @property
    def image_size(self) -> int:
        """Side of the model's input, pixels."""
        return self.config.image_size

    @property
    def hidden_dim(self) -> int:
        """Channels of the low-resolution features (256)."""
        return self.config.hidden_dim

    @property
    def mem_dim(self) -> int:
        """Channels of a memory token (64)."""
        return self.config.memory_dim

    @property
    def sam_prompt_embed_dim(self) -> int:
        """Channels of a prompt token (256)."""
        return self.config.hidden_dim

    @property
    def sam_image_embedding_size(self) -> int:
        """Side of the low-resolution features, tokens."""
        return self.config.grid

    @property
    def sam_mask_decoder_extra_args(self) -> dict[str, Any]:
        """The options of the mask decoder, as keyword arguments of the official one."""
        return {name: getattr(self.options, name) for name in DECODER_OPTIONS}


def _option(name: str) -> property:
    """An option as an attribute of the model, readable and writable under its official name."""

    def get(model: Sam2) -> Any:
        return getattr(model.options, name)

    def put(model: Sam2, value: Any) -> None:
        model.options = model.options.updated(**{name: value})

    return property(get, put)


def _constant(value: object, model: Sam2) -> object:
    return value


def _fixed(name: str, value: Callable[[Sam2], object]) -> property:
    """An official setting that cannot be changed. value: as in the released models."""

    def put(model: Sam2, other: Any) -> None:
        expected = value(model)
        if other != expected:
            raise ValueError(
                f"{name}: expected {expected!r}, as in the released models, got {other!r}; "
                "override the method that reads it instead"
            )

    return property(value, put)


for _field in fields(Options):
    setattr(SAM2Base, _field.name, _option(_field.name))
for _name, _value in FIXED_SETTINGS.items():
    setattr(SAM2Base, _name, _fixed(_name, partial(_constant, _value)))
for _name in VERSION_SETTINGS:
    setattr(SAM2Base, _name, _fixed(_name, lambda model: model.config.version == "2.1"))
