"""`sam2.build_sam`: the builders, and the steps of the official ones that programs replace."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import Any, cast

import sam2_fast.build_sam as ours
from sam2_fast.compat.shim import optional
from sam2_fast.config import DECODER_OPTIONS
from sam2_fast.model import Sam2
from sam2_fast.official.base import SAM2Base
from sam2_fast.ops.core.lookups import LookedUp
from sam2_fast.video.camera import SAM2CameraPredictor
from sam2_fast.video.predictor import SAM2VideoPredictor
from sam2_fast.weights.build import choose_device
from sam2_fast.weights.checkpoint import CheckpointError, load_weights, read_state_dict
from sam2_fast.weights.hub import HF_MODEL_ID_TO_FILENAMES as HF_MODEL_ID_TO_FILENAMES
from sam2_fast.weights.hub import download

_compose: Any = None
_instantiate: Any = None
_omega_conf: Any = None
"""Replacements of `compose`, `instantiate` and `OmegaConf`, which we do not call; or None."""


@wraps(ours.build_sam2)
def build_sam2(*args: Any, **kwargs: Any) -> SAM2Base:
    """See `sam2_fast.build_sam2`; steps that a program has replaced are called as there."""
    return _build(ours.build_sam2, SAM2Base, args, kwargs)


@wraps(ours.build_sam2_video_predictor)
def build_sam2_video_predictor(*args: Any, **kwargs: Any) -> SAM2VideoPredictor:
    """See `sam2_fast.build_sam2_video_predictor`; replaced steps are called as there."""
    predictor = _build(ours.build_sam2_video_predictor, SAM2VideoPredictor, args, kwargs)
    return cast(SAM2VideoPredictor, predictor)


def build_sam2_camera_predictor(*args: Any, **kwargs: Any) -> SAM2CameraPredictor:
    """One stream of a video predictor (the builder of forks that track cameras).

    The arguments are those of `build_sam2_video_predictor`.
    """
    return SAM2CameraPredictor(build_sam2_video_predictor(*args, **kwargs))


def build_sam2_hf(model_id: str, **kwargs: Any) -> SAM2Base:
    """`build_sam2` with weights from the Hugging Face Hub or from a local path."""
    if not _is_changed():
        return ours.build_sam2_hf(model_id, **kwargs)
    config_name, path = _hf_download(model_id)
    return build_sam2(config_file=config_name, ckpt_path=path, **kwargs)


def build_sam2_video_predictor_hf(model_id: str, **kwargs: Any) -> SAM2VideoPredictor:
    """`build_sam2_video_predictor` with weights from the Hugging Face Hub or from a local path."""
    if not _is_changed():
        return ours.build_sam2_video_predictor_hf(model_id, **kwargs)
    config_name, path = _hf_download(model_id)
    return build_sam2_video_predictor(config_file=config_name, ckpt_path=path, **kwargs)


def _load_checkpoint(model: Sam2, ckpt_path: str | Path | None) -> None:
    """Load weights strictly; None leaves the model as it is.

    Raises RuntimeError for keys that do not match, as the official function does.
    """
    if ckpt_path is None:
        return
    try:
        load_weights(model, read_state_dict(ckpt_path), f"checkpoint {ckpt_path}")
    except CheckpointError as error:
        raise RuntimeError(str(error)) from error


def _hf_download(model_id: str) -> tuple[str, str]:
    """(official configuration name, path of the weights) for a Hub id."""
    return HF_MODEL_ID_TO_FILENAMES[model_id][0], str(download(model_id))


_LOADING = LookedUp(globals(), "_load_checkpoint")
_HUB = LookedUp(
    globals(),
    *("_hf_download", "HF_MODEL_ID_TO_FILENAMES", "build_sam2", "build_sam2_video_predictor"),
)


def _composes() -> bool:
    return any(step is not None for step in (_compose, _instantiate, _omega_conf))


def _is_changed() -> bool:
    return bool(_composes() or _LOADING.replaced() or _HUB.replaced())


def _build(
    builder: Callable[..., SAM2Base],
    kind: type[SAM2Base],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> SAM2Base:
    """The model of a builder; the steps that a program has replaced are called instead of ours."""
    if not _composes() and not _LOADING.replaced():
        return builder(*args, **kwargs)
    bound = signature(builder).bind(*args, **kwargs)
    path = bound.arguments.pop("ckpt_path", None)
    if not _composes():
        model = builder(*bound.args, **bound.kwargs)
        _load_checkpoint(model, path)
        return model
    bound.apply_defaults()
    options = bound.arguments
    overrides = [*options["hydra_overrides_extra"]]
    if kind is SAM2VideoPredictor:
        name = "SAM2VideoPredictorVOS" if options["vos_optimized"] else "SAM2VideoPredictor"
        overrides.insert(0, f"++model._target_=sam2.sam2_video_predictor.{name}")
    if options["apply_postprocessing"]:
        overrides += [_override(*item) for item in kind.postprocessing.items()]
    model = _instantiated(options["config_file"], overrides)
    _load_checkpoint(model, path)
    model = model.to(device=choose_device(options["device"]), dtype=options["dtype"])
    return model.train(options["mode"] == "train")


def _override(name: str, value: Any) -> str:
    group = "sam_mask_decoder_extra_args." if name in DECODER_OPTIONS else ""
    return f"++model.{group}{name}={str(value).lower()}"


def _instantiated(config_file: Any, overrides: Sequence[str]) -> SAM2Base:
    """The model that Hydra makes from a configuration, with what a program has replaced."""
    compose = _compose or _hydra_compose
    config = compose(config_name=config_file, overrides=[*overrides])
    if _omega_conf is not None or "omegaconf" in sys.modules:
        resolver = _omega_conf or optional.value("sam2.build_sam", "OmegaConf")
        if resolver.is_config(config):
            resolver.resolve(config)
    instantiate = _instantiate or optional.value("sam2.build_sam", "instantiate")
    return cast(SAM2Base, instantiate(config.model, _recursive_=True))


def _hydra_compose(config_name: Any, overrides: Sequence[str]) -> Any:
    """Hydra's `compose`, with the configurations of `sam2` as in the official package."""
    hydra = optional.value("sam2", "GlobalHydra")
    if not hydra.instance().is_initialized():
        optional.value("sam2", "initialize_config_module")("sam2", version_base="1.2")
    return optional.value("sam2.build_sam", "compose")(config_name=config_name, overrides=overrides)
