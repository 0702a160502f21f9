"""A training recipe: all settings that determine the result of training, read from a JSON file."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, get_args, get_type_hints

from sam2_fast.config import Sam2Config
from sam2_fast.data.synthetic import World
from sam2_fast.files.reasons import one_line
from sam2_fast.io.json_files import read_json
from sam2_fast.io.limits import MAX_JSON_BYTES
from sam2_fast.training.augment import Augmentation
from sam2_fast.training.losses import LossWeights
from sam2_fast.training.simulation import Annotator
from sam2_fast.training.sources import Source, Synthetic
from sam2_fast.training.stored import Folder, Sa1b, Sav, Stored

_SCALARS = {int, float, bool, str, type(None)}

SOURCES: dict[str, type[Source]] = {
    "synthetic": Synthetic,
    "folder": Folder,
    "sa-v": Sav,
    "sa-1b": Sa1b,
}


@dataclass(frozen=True)
class Stage:
    """A part of the training with constant settings.

    The learning rate rises linearly for `warmup` steps, then falls as half a cosine to `final_lr`.
    """

    steps: int = 1000
    image_size: int = 1024  # pixels
    lr: float = 5e-6
    encoder_lr: float | None = None  # of the image encoder; None: the same as lr
    final_lr: float = 0.1  # fraction of lr
    warmup: int = 0
    cosine: int | None = None  # step at which the cosine ends; None: the last of the stage
    sources: tuple[Source, ...] = (Synthetic(),)
    annotator: Annotator = field(default_factory=Annotator)
    losses: LossWeights = field(default_factory=LossWeights)

    def __post_init__(self) -> None:
        rates = (self.lr, self.lr if self.encoder_lr is None else self.encoder_lr)
        if (
            self.steps < 1
            or min(rates) < 0
            or not 0 <= self.final_lr <= 1
            or not 0 <= self.warmup <= self.steps
        ):
            raise ValueError(
                "expected steps of 1 or more, lr and encoder_lr of 0 or more, final_lr of 0 to 1, "
                "warmup of 0 to steps"
            )
        if (
            not self.sources
            or any(s.share < 0 or s.frames < 1 or s.batch < 1 for s in self.sources)
            or not sum(s.share for s in self.sources)
        ):
            raise ValueError(
                "expected sources with shares of 0 or more, not all 0, and frames and batch of 1 "
                "or more"
            )


@dataclass(frozen=True)
class Recipe:
    """A training recipe.

    The defaults are those of the official fine-tuning configuration
    (`sam2.1_hiera_b+_MOSE_finetune.yaml`).
    """

    # an architecture, or its name; None: read from `weights`
    model: Sam2Config | str | None = None
    weights: str | None = None  # initial weights; None: random ones
    seed: int = 123
    weight_decay: float = 0.1
    # factor of the learning rate for each block of the image encoder's trunk, from its end
    layer_decay: float = 0.9
    clip_norm: float = 0.1  # greatest norm of the gradient
    dropout: float = 0.1  # probability of dropping a value in memory attention
    # probability of dropping a branch in the last block of the image encoder, less in earlier ones
    drop_path: float = 0.1
    # decay of a moving average of the weights, which is saved in place of the weights; 0: none
    ema: float = 0.0
    bfloat16: bool = True  # autocast
    recompute: bool = False  # store fewer activations, see `simulate`
    stages: tuple[Stage, ...] = (Stage(),)

    def __post_init__(self) -> None:
        if (self.model is None and self.weights is None) or not self.stages:
            raise ValueError("expected `model`, `weights` or both, and at least one stage")
        for name in ("dropout", "drop_path"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: expected 0 to below 1, got {getattr(self, name)}")
        if (
            not 0 <= self.ema < 1
            or not 0 < self.layer_decay <= 1
            or self.clip_norm <= 0
            or self.weight_decay < 0
        ):
            raise ValueError(
                "expected ema in [0, 1), layer_decay in (0, 1], clip_norm above 0, weight_decay "
                "of 0 or more"
            )

    @property
    def steps(self) -> int:
        """Number of steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    def at(self, step: int) -> tuple[Stage, int]:
        """The stage of a step, and the number of the step in this stage.

        After the end: the last stage and its length.
        """
        for stage in self.stages:
            if step < stage.steps:
                return stage, step
            step -= stage.steps
        return self.stages[-1], self.stages[-1].steps

    def unused(self) -> list[str]:
        """What the folders of the sources have and no clip shows, with the reasons."""
        stored = {s for stage in self.stages for s in stage.sources if isinstance(s, Stored)}
        return sorted({line for source in stored for line in source.unused()})

    def text(self) -> str:
        """All values as JSON; stored in checkpoints to recognise the recipe."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, max_bytes: int = MAX_JSON_BYTES) -> Recipe:
        """Read a recipe from a JSON file.

        A key of a stage at the top level applies to all stages. max_bytes: limit of the file.
        Raises FileNotFoundError, or ValueError, which names the
        value that is wrong.
        """
        document = read_json(path, "recipe", max_bytes=max_bytes)
        label = f"recipe {path}"
        if not isinstance(document, dict):
            raise ValueError(
                f"{label}: expected an object with keys, got {type(document).__name__}"
            )
        stage_keys = {f.name for f in fields(Stage)}
        common = {key: document.pop(key) for key in list(document) if key in stage_keys}
        stages = document.pop("stages", [{}])
        if not isinstance(stages, list) or not all(isinstance(stage, dict) for stage in stages):
            raise ValueError(f"{label}: stages: expected a list of objects")
        if isinstance(document.get("model"), dict):
            document["model"] = _build(Sam2Config, document["model"], f"{label}: model")
        document["stages"] = tuple(
            _stage(common | stage, f"{label}: stage {number}")
            for number, stage in enumerate(stages)
        )
        recipe: Recipe = _build(cls, document, label)
        return recipe


def _stage(values: dict[str, Any], label: str) -> Stage:
    for name, kind in (("annotator", Annotator), ("losses", LossWeights)):
        if name in values:
            values[name] = _build(kind, values[name], f"{label}: {name}")
    if "sources" in values:
        sources = values["sources"]
        if not isinstance(sources, list):
            raise ValueError(
                f"{label}: sources: expected a list of objects, each with a `kind` of "
                f"{', '.join(SOURCES)}"
            )
        values["sources"] = tuple(
            _source(source, f"{label}: source {number}") for number, source in enumerate(sources)
        )
    stage: Stage = _build(Stage, values, label)
    return stage


def _source(values: Any, label: str) -> Source:
    kind = values.get("kind") if isinstance(values, dict) else None
    if not isinstance(kind, str) or kind not in SOURCES:
        raise ValueError(f"{label}: kind: expected one of {', '.join(SOURCES)}, got {kind!r:.100}")
    rest = {key: value for key, value in values.items() if key != "kind"}
    for name, part in (("world", World), ("augmentation", Augmentation)):
        if name in rest:
            rest[name] = _build(part, rest[name], f"{label}: {name}")
    source: Source = _build(SOURCES[kind], rest, label)
    return source


def _check_scalar(value: Any, hint: Any, label: str) -> None:
    """Raise ValueError unless a value has the type of its field, if that is a plain one."""
    kinds = set(get_args(hint)) or {hint}
    if not kinds <= _SCALARS:
        return
    if float in kinds and type(value) is int:
        value = float(value) if abs(value) < 2**63 else math.inf
    if type(value) not in kinds or (type(value) is float and not math.isfinite(value)):
        expected = " or ".join(sorted("null" if k is type(None) else k.__name__ for k in kinds))
        raise ValueError(f"{label}: expected {expected}, finite, got {value!r:.100}")


def _build(kind: type, values: Mapping[str, Any], label: str) -> Any:
    """An instance of a dataclass. label: the part of the recipe, for error messages."""
    names = {f.name for f in fields(kind)}
    if not isinstance(values, Mapping):
        raise ValueError(
            f"{label}: expected an object with keys of {', '.join(sorted(names))}, got {values!r}"
        )
    if unknown := sorted(set(values) - names):
        raise ValueError(
            f"{label}: unknown {one_line(', '.join(unknown))}; expected keys of "
            f"{', '.join(sorted(names))}"
        )
    types = get_type_hints(kind)
    for key, value in values.items():
        _check_scalar(value, types[key], f"{label}: {key}")
    try:
        return kind(
            **{
                key: tuple(value) if isinstance(value, list) else value
                for key, value in values.items()
            }
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"{label}: {error}") from error
