"""A training recipe: everything that decides what is learned, read from one JSON file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from sam2_fast.config import Sam2Config
from sam2_fast.data.synthetic import World
from sam2_fast.training.augment import Augmentation
from sam2_fast.training.losses import LossWeights
from sam2_fast.training.simulation import Annotator
from sam2_fast.training.sources import Source, Synthetic
from sam2_fast.training.stored import Folder, Sa1b, Sav

SOURCES: dict[str, type[Source]] = {
    "synthetic": Synthetic,
    "folder": Folder,
    "sa-v": Sav,
    "sa-1b": Sa1b,
}


@dataclass(frozen=True)
class Stage:
    """A stretch of training. Its learning rate rises linearly for `warmup` steps, then falls as
    half a cosine to `final_lr`.
    """

    steps: int = 1000
    image_size: int = 1024  # pixels
    lr: float = 5e-6
    encoder_lr: float | None = None  # of the image encoder; None: the same
    final_lr: float = 0.1  # of lr
    warmup: int = 0
    cosine: int | None = None  # steps until the cosine is at its end; None: the stage's
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
    """Defaults are those of the official fine-tuning configuration
    (`sam2.1_hiera_b+_MOSE_finetune.yaml`).
    """

    model: Sam2Config | str | None = (
        None  # an architecture or the name of one; None: as `weights` says
    )
    weights: str | None = None  # to start from; None: random ones
    seed: int = 123
    weight_decay: float = 0.1
    layer_decay: float = (
        0.9  # of the learning rate, by block of the image encoder's trunk from its end
    )
    clip_norm: float = 0.1  # of the gradient
    # weight of the past in a moving average of the weights, which is then what is saved; 0: none
    ema: float = 0.0
    bfloat16: bool = True  # autocast
    recompute: bool = False  # keep fewer activations, see `simulate`
    stages: tuple[Stage, ...] = (Stage(),)

    def __post_init__(self) -> None:
        if (self.model is None and self.weights is None) or not self.stages:
            raise ValueError("expected `model`, `weights` or both, and a stage or more")
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
        """Of all stages."""
        return sum(stage.steps for stage in self.stages)

    def at(self, step: int) -> tuple[Stage, int]:
        """The stage that a step belongs to, and its number in there. Past the end: the last stage,
        and its length.
        """
        for stage in self.stages:
            if step < stage.steps:
                return stage, step
            step -= stage.steps
        return self.stages[-1], self.stages[-1].steps

    def text(self) -> str:
        """All values as JSON: what a checkpoint keeps, to know its own recipe again."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Recipe:
        """From a JSON file. A key of a stage on the top level holds for all stages. Raises
        ValueError that names what does not fit.
        """
        try:
            given = json.loads(Path(path).read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"recipe {path}: not JSON ({error})") from error
        where = f"recipe {path}"
        if not isinstance(given, dict):
            raise ValueError(f"{where}: expected an object with keys, got {type(given).__name__}")
        common = {
            key: given.pop(key) for key in list(given) if key in {f.name for f in fields(Stage)}
        }
        stages = given.pop("stages", [{}])
        if not isinstance(stages, list) or not all(isinstance(stage, dict) for stage in stages):
            raise ValueError(f"{where}: stages: expected a list of objects")
        if isinstance(given.get("model"), dict):
            given["model"] = _filled(Sam2Config, given["model"], f"{where}: model")
        made = tuple(
            _stage(common | stage, f"{where}: stage {number}")
            for number, stage in enumerate(stages)
        )
        found: Recipe = _filled(cls, given | {"stages": made}, where)
        return found


def _stage(given: dict[str, Any], where: str) -> Stage:
    for name, kind in (("annotator", Annotator), ("losses", LossWeights)):
        if name in given:
            given[name] = _filled(kind, given[name], f"{where}: {name}")
    if "sources" in given:
        sources = given["sources"]
        if not isinstance(sources, list):
            raise ValueError(
                f"{where}: sources: expected a list of objects, each with a `kind` of "
                f"{', '.join(SOURCES)}"
            )
        given["sources"] = tuple(
            _source(source, f"{where}: source {number}") for number, source in enumerate(sources)
        )
    stage: Stage = _filled(Stage, given, where)
    return stage


def _source(given: Any, where: str) -> Source:
    kind = given.get("kind") if isinstance(given, dict) else None
    if kind not in SOURCES:
        raise ValueError(f"{where}: kind: expected one of {', '.join(SOURCES)}, got {kind!r}")
    rest = {key: value for key, value in given.items() if key != "kind"}
    for name, part in (("world", World), ("augmentation", Augmentation)):
        if name in rest:
            rest[name] = _filled(part, rest[name], f"{where}: {name}")
    source: Source = _filled(SOURCES[kind], rest, where)
    return source


def _filled(kind: type, given: Mapping[str, Any], where: str) -> Any:
    names = {f.name for f in fields(kind)}
    if not isinstance(given, Mapping):
        raise ValueError(
            f"{where}: expected an object with keys of {', '.join(sorted(names))}, got {given!r}"
        )
    if unknown := sorted(set(given) - names):
        raise ValueError(
            f"{where}: unknown {', '.join(unknown)}; there are {', '.join(sorted(names))}"
        )
    try:
        return kind(
            **{
                key: tuple(value) if isinstance(value, list) else value
                for key, value in given.items()
            }
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error
