"""The official builders: a configuration name and weights in, a model or a predictor out."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from sam2_fast.checkpoint import infer_config, load_weights, read_state_dict
from sam2_fast.config import IMAGE_POSTPROCESSING, VIDEO_POSTPROCESSING, Options, Sam2Config
from sam2_fast.hub import HF_MODEL_ID_TO_FILENAMES, download
from sam2_fast.official_config import apply_overrides, read_config_name
from sam2_fast.sam2_base import SAM2Base
from sam2_fast.video_predictor import SAM2VideoPredictor

__all__ = [
    "HF_MODEL_ID_TO_FILENAMES",
    "build_sam2",
    "build_sam2_hf",
    "build_sam2_video_predictor",
    "build_sam2_video_predictor_hf",
]

_log = logging.getLogger(__name__)
_Model = TypeVar("_Model", bound=SAM2Base)
_Weights = str | Path | Mapping[str, Any] | None


def build_sam2(
    config_file: str | Sam2Config | None = None,
    ckpt_path: _Weights = None,
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
    **kwargs: Any,
) -> SAM2Base:
    """The model for images (official `build_sam2`).

    config_file: "tiny", "small", "base_plus", "large", an official configuration name or path, a `Sam2Config`, or None to
        read size and version off the weights. ckpt_path: a `.pt` or `.safetensors` file, or a state dict; None keeps random
        weights, drawn from `seed` where one is given (the global generator is then left alone).
    device: None takes CUDA where there is one. dtype: torch.float32 (default), bfloat16 or float16 weights.
    image_size: pixels, a multiple of 32; a shorthand for the override `++model.image_size=N`.
    compile: leave the image encoder's trunk to `torch.compile`, which takes its time with the first image of a size; by default nothing is
        compiled at run time.
    prove: False runs this model's kernels on a GPU without the proof that each gives of itself there, once a machine (docs/proving.md).
    Raises ValueError for an unknown name or override, CheckpointError for weights that do not fit.
    """
    post = IMAGE_POSTPROCESSING if apply_postprocessing else {}
    made = _build(SAM2Base, config_file, ckpt_path, device, mode, hydra_overrides_extra, post, image_size, dtype, seed)
    return _finished(made, compile, prove)


def build_sam2_video_predictor(
    config_file: str | Sam2Config | None = None,
    ckpt_path: _Weights = None,
    device: str | torch.device | None = None,
    mode: str = "eval",
    hydra_overrides_extra: Sequence[str] = (),
    apply_postprocessing: bool = True,
    vos_optimized: bool = False,
    *,
    image_size: int | None = None,
    dtype: torch.dtype | None = None,
    seed: int | None = None,
    compile: bool = False,  # noqa: A002 - the name that users of torch expect
    prove: bool = True,
    **kwargs: Any,
) -> SAM2VideoPredictor:
    """The predictor for videos (official `build_sam2_video_predictor`); arguments as in `build_sam2`.

    vos_optimized is accepted and changes nothing: on a GPU frames are replayed from recordings anyway, and no path compiles at run time.
    """
    post = VIDEO_POSTPROCESSING if apply_postprocessing else {}
    made = _build(SAM2VideoPredictor, config_file, ckpt_path, device, mode, hydra_overrides_extra, post, image_size, dtype, seed)
    return _finished(made, compile, prove)


def build_sam2_hf(model_id: str, **kwargs: Any) -> SAM2Base:
    """`build_sam2` with weights from the Hugging Face Hub (cached; HF_HUB_OFFLINE is honoured) or from a local path."""
    return build_sam2(ckpt_path=download(model_id), **kwargs)


def build_sam2_video_predictor_hf(model_id: str, **kwargs: Any) -> SAM2VideoPredictor:
    """`build_sam2_video_predictor` with weights from the Hugging Face Hub or from a local path."""
    return build_sam2_video_predictor(ckpt_path=download(model_id), **kwargs)


def _build(
    kind: type[_Model],
    config_file: str | Sam2Config | None,
    weights: _Weights,
    device: str | torch.device | None,
    mode: str,
    overrides: Sequence[str],
    post: Mapping[str, Any],
    image_size: int | None,
    dtype: torch.dtype | None,
    seed: int | None,
) -> _Model:
    if mode not in ("eval", "train"):
        raise ValueError(f"mode: expected 'eval' or 'train', got {mode!r}")
    if dtype not in (None, torch.float32, torch.bfloat16, torch.float16, torch.float64):
        raise ValueError(f"dtype: expected float32, bfloat16, float16 or float64, got {dtype}")
    state = None if weights is None else read_state_dict(weights)
    if config_file is None and state is None:
        raise ValueError("config_file: expected a size such as 'tiny' or an official configuration name where no weights are given")
    if config_file is None:
        config = infer_config(state or {})
    else:
        config = config_file if isinstance(config_file, Sam2Config) else read_config_name(config_file)
    config, options = apply_overrides(config, Options(), [*overrides])
    options = options.updated(**post)
    config = config if image_size is None else replace(config, image_size=image_size)
    place = choose_device(device)
    model = _construct(kind, config, options, seed)
    if state is not None:
        load_weights(model, state, f"checkpoint {weights}" if isinstance(weights, (str, Path)) else "state dict")
    model = model.to(device=place, dtype=dtype)
    return model.train(mode == "train")


def _finished(model: _Model, compiled: bool, prove: bool) -> _Model:
    model.prove = prove
    if compiled:
        model.image_encoder.trunk.compile(fullgraph=True)
    return model


def _construct(kind: type[_Model], config: Sam2Config, options: Options, seed: int | None) -> _Model:
    if seed is None:
        return kind(config, options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(config, options)


def choose_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, else CUDA where there is one, else the CPU (said once, in a log line)."""
    if device is not None:
        return torch.device(device)
    chosen = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    _log.info("no device named: using %s", chosen)
    return chosen
