"""Building a model of a given class from a configuration name and weights."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import torch

from sam2_fast.config import Options, Sam2Config
from sam2_fast.model import Sam2
from sam2_fast.prompts import caller_stacklevel
from sam2_fast.weights.checkpoint import infer_config, load_weights, read_state_dict
from sam2_fast.weights.config_names import apply_overrides, read_config_name
from sam2_fast.weights.hub import download

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
    config = _config(config_file, state)
    config, options = apply_overrides(config, Options(), [*hydra_overrides_extra])
    if apply_postprocessing:
        options = options.updated(**kind.postprocessing)
    if image_size is not None:
        config = replace(config, image_size=image_size)
    target = choose_device(device)
    model = _construct(kind, config, options, seed)
    if state is not None:
        source = f"checkpoint {ckpt_path}" if isinstance(ckpt_path, (str, Path)) else "state dict"
        load_weights(model, state, source)
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


def _config(config_file: str | Sam2Config | None, state: Mapping[str, Any] | None) -> Sam2Config:
    if isinstance(config_file, Sam2Config):
        return config_file
    if config_file is not None:
        return read_config_name(config_file)
    if state is None:
        raise ValueError(
            "config_file: expected a size such as 'tiny' or an official configuration name, got "
            "None without weights"
        )
    return infer_config(state)


def _construct(kind: type[Model], config: Sam2Config, options: Options, seed: int | None) -> Model:
    if seed is None:
        return kind(config, options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(config, options)


def choose_device(device: str | torch.device | None) -> torch.device:
    """`device`, or for None CUDA if available, else the CPU (with a log line)."""
    if device is not None:
        return torch.device(device)
    default = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    _log.info("no device named: using %s", default)
    return default
