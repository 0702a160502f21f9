"""The official builders: a configuration name and weights in, a model or a predictor out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from sam2_fast.config import Sam2Config
from sam2_fast.official.base import SAM2Base
from sam2_fast.video.predictor import SAM2VideoPredictor
from sam2_fast.weights.build import WeightsSource, build_model, warn_of_unknown
from sam2_fast.weights.hub import HF_MODEL_ID_TO_FILENAMES, download

__all__ = [
    "HF_MODEL_ID_TO_FILENAMES",
    "build_sam2",
    "build_sam2_hf",
    "build_sam2_video_predictor",
    "build_sam2_video_predictor_hf",
]


def build_sam2(
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
    **kwargs: Any,
) -> SAM2Base:
    """The model for images (official `build_sam2`).

    config_file: "tiny", "small", "base_plus", "large", an official configuration name or path, a
        `Sam2Config`, or None to
        read size and version off the weights. ckpt_path: a `.pt` or `.safetensors` file, or a state
        dict; None keeps random weights, drawn from `seed` where one is given (the global generator
        is then left alone).
    device: None takes CUDA where there is one. dtype: torch.float32 (default), bfloat16 or float16
        weights.
    image_size: pixels, a multiple of 32; a shorthand for the override `++model.image_size=N`.
    compile: leave the image encoder's trunk to `torch.compile`, which takes its time with the first
        image of a size; by default nothing is compiled at run time.
    prove: False runs this model's kernels on a GPU without the proof that each gives of itself
    there, once a machine (docs/proving.md). Unknown keyword arguments are ignored with a warning;
    those of the official builders are accepted. Raises ValueError for an unknown name or override,
    CheckpointError for weights that do not fit.
    """
    warn_of_unknown(kwargs)
    return build_model(
        SAM2Base,
        config_file,
        ckpt_path,
        device,
        mode,
        hydra_overrides_extra,
        apply_postprocessing,
        image_size=image_size,
        dtype=dtype,
        seed=seed,
        compile=compile,
        prove=prove,
    )


def build_sam2_video_predictor(
    config_file: str | Sam2Config | None = None,
    ckpt_path: WeightsSource = None,
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
    """The predictor for videos (official `build_sam2_video_predictor`); arguments as in
    `build_sam2`.

    vos_optimized is accepted and changes nothing: on a GPU frames are replayed from recordings
        anyway, and no path compiles at run time.
    """
    warn_of_unknown(kwargs)
    return build_model(
        SAM2VideoPredictor,
        config_file,
        ckpt_path,
        device,
        mode,
        hydra_overrides_extra,
        apply_postprocessing,
        image_size=image_size,
        dtype=dtype,
        seed=seed,
        compile=compile,
        prove=prove,
    )


def build_sam2_hf(model_id: str, **kwargs: Any) -> SAM2Base:
    """`build_sam2` with weights from the Hugging Face Hub (cached; HF_HUB_OFFLINE is honoured) or
    from a local path.
    """
    return build_sam2(ckpt_path=download(model_id), **kwargs)


def build_sam2_video_predictor_hf(model_id: str, **kwargs: Any) -> SAM2VideoPredictor:
    """`build_sam2_video_predictor` with weights from the Hugging Face Hub or from a local path."""
    return build_sam2_video_predictor(ckpt_path=download(model_id), **kwargs)
