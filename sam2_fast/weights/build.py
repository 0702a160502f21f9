"""Building a model of a given class from a configuration name and weights."""

from __future__ import annotations

import copy
import inspect
import logging
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from sam2_fast.config import DECODER_OPTIONS, Options, Sam2Config
from sam2_fast.model import Sam2
from sam2_fast.prompts import caller_stacklevel
from sam2_fast.weights.checkpoint import check_weights, infer_config, read_state_dict
from sam2_fast.weights.config_names import read_config
from sam2_fast.weights.config_tree import model_tree
from sam2_fast.weights.hub import download
from sam2_fast.weights.instantiate import find_class, instantiate
from sam2_fast.weights.overrides import (
    Override,
    apply_plain,
    apply_to_tree,
    check_values,
    parse_overrides,
)

_log = logging.getLogger(__name__)
Model = TypeVar("Model", bound=Sam2)
WeightsSource = str | Path | Mapping[str, Any] | None
"""A `.pt` or `.safetensors` file, a state dict, or None for random weights."""


def build_model(
    kind: type[Model],
    config_file: str | Sam2Config | None = None,
    ckpt_path: WeightsSource = None,
    device: str | torch.device | None = None,
    mode: str = "eval",
    hydra_overrides_extra: Sequence[str] = (),
    apply_postprocessing: bool = True,
    *,
    image_size: int | None = None,
    dtype: torch.dtype | None = None,
    seed: int | None = None,
    compile: bool = False,  # noqa: A002 - the name that users of torch expect
    prove: bool = True,
) -> Model:
    """A model of class `kind`; other arguments and errors are those of `build_sam2`."""
    if mode not in ("eval", "train"):
        raise ValueError(f"mode: expected 'eval' or 'train', got {mode!r}")
    if dtype not in (None, torch.float32, torch.bfloat16, torch.float16, torch.float64):
        raise ValueError(f"dtype: expected float32, bfloat16, float16 or float64, got {dtype}")
    state = None if ckpt_path is None else read_state_dict(ckpt_path)
    parsed = parse_overrides([*hydra_overrides_extra])
    overrides = [override for override in parsed if override.of_model]
    others = [override.text for override in parsed if not override.of_model]
    config = _config(config_file, state, others)
    if isinstance(config, Sam2Config) and all(override.is_plain for override in overrides):
        config, options = apply_plain(config, Options(), overrides)
        if apply_postprocessing:
            options = options.updated(**kind.postprocessing)
        if image_size is not None:
            config = replace(config, image_size=image_size)
        build = partial(kind, config, options)
    else:
        check_values(overrides)
        tree = _tree(kind, config, overrides, apply_postprocessing)
        if image_size is not None:
            tree["image_size"] = image_size
        build = partial(instantiate, tree)
    target = choose_device(device)
    model = _construct(build, seed, replaced=state is not None)
    if state is not None:
        source = f"checkpoint {ckpt_path}" if isinstance(ckpt_path, (str, Path)) else "state dict"
        check_weights(model, state, source)
        model.load_state_dict(dict(state), strict=True)
    model = model.to(device=target, dtype=dtype).train(mode == "train")
    model.prove = prove
    if compile:
        model.image_encoder.trunk.compile(fullgraph=True)
    return model


def build_pretrained(kind: type[Model], model_id: str, keywords: Mapping[str, Any]) -> Model:
    """`build_model` with weights from the Hugging Face Hub or a local path.

    keywords: those that `build_model` does not have are ignored.
    """
    arguments = {name: value for name, value in keywords.items() if name in BUILD_KEYWORDS}
    return build_model(kind, ckpt_path=download(model_id), **arguments)


BUILD_KEYWORDS = tuple(inspect.signature(build_model).parameters)[1:]
"""Keyword arguments of the builders."""
UPSTREAM_KEYWORDS = ("vos_optimized", "use_vos_optimized_video_predictor", "load_from_HF")
"""Keyword arguments of the official builders that are accepted without effect."""


def warn_of_unknown(keywords: Collection[str]) -> None:
    """Warn of keyword arguments that neither our builders nor upstream's have.

    Such arguments are ignored, as upstream. The UserWarning points to the line that called the
    package.
    """
    known = [*BUILD_KEYWORDS, *UPSTREAM_KEYWORDS]
    for name in keywords:
        if name in known:
            continue
        if matches := get_close_matches(name, known, n=1):
            advice = f"did you mean {matches[0]!r}?"
        else:
            advice = f"known are {', '.join(sorted(known))}"
        message = f"unknown keyword argument {name!r} is ignored; {advice}"
        warnings.warn(message, UserWarning, stacklevel=caller_stacklevel())


def _config(
    config_file: str | Sam2Config | None, state: Mapping[str, Any] | None, others: Sequence[str]
) -> Sam2Config | dict[str, Any]:
    """The architecture, or the configuration of a model in a file."""
    if config_file is not None and not isinstance(config_file, Sam2Config):
        return read_config(config_file, others)
    if others:
        raise ValueError(
            f"hydra_overrides_extra: expected overrides of the model, '++model.KEY=VALUE', got "
            f"{others[0]!r}"
        )
    if isinstance(config_file, Sam2Config):
        return config_file
    if state is None:
        raise ValueError(
            "config_file: expected a size such as 'tiny' or an official configuration name, got "
            "None without weights"
        )
    return infer_config(state)


def _tree(
    kind: type[Sam2],
    config: Sam2Config | dict[str, Any],
    overrides: Sequence[Override],
    apply_postprocessing: bool,
) -> dict[str, Any]:
    """The configuration of a model with overrides.

    Its class is that of an override, else that of the configuration if it is a `kind`, else `kind`.
    """
    tree = model_tree(config) if isinstance(config, Sam2Config) else copy.deepcopy(config)
    if not isinstance(config, dict) or not issubclass(_class(tree), kind):
        tree["_target_"] = kind
    apply_to_tree(tree, overrides)
    _class(tree)
    if apply_postprocessing:
        for name, value in kind.postprocessing.items():
            if name in DECODER_OPTIONS:
                extra = tree.get("sam_mask_decoder_extra_args") or {}
                tree["sam_mask_decoder_extra_args"] = {**extra, name: value}
            else:
                tree[name] = value
    return tree


def _class(tree: Mapping[str, Any]) -> type[Sam2]:
    """The class of a model's configuration. Raises ValueError if it is not one of ours."""
    kind = find_class(tree.get("_target_"))
    if not issubclass(kind, Sam2):
        raise ValueError(
            f"model._target_: expected a subclass of sam2_fast.SAM2Base, got "
            f"{kind.__module__}.{kind.__qualname__}; build it without the builder"
        )
    return kind


def _construct(build: Callable[[], Model], seed: int | None, replaced: bool) -> Model:
    """A model with random weights.

    The global generators are used only without a seed, and if weights do not replace all of them.
    """
    if seed is None and not replaced:
        return build()
    default = torch.get_default_device()
    with torch.random.fork_rng([default] if default.type == "cuda" else []):
        if seed is not None:  # `torch.manual_seed` would seed the generators of all GPUs
            torch.default_generator.manual_seed(seed)
            if default.type == "cuda":
                torch.cuda.manual_seed(seed)
        return build()


def choose_device(device: str | torch.device | None) -> torch.device:
    """`device`, or for None CUDA if available, else the CPU (with a log line)."""
    if device is not None:
        return torch.device(device)
    default = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    _log.info("no device named: using %s", default)
    return default
