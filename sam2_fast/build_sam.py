"""The official builders: a model or a predictor from a configuration name and weights."""

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

    config_file: "tiny", "small", "base_plus", "large", an official configuration name, a YAML file
        or a `Sam2Config`; None: derived from the weights (docs/migration.md).
    ckpt_path: a `.pt` or `.safetensors` file, or a state dict; None: random weights.
    device: None: CUDA if available, else the CPU.
    hydra_overrides_extra: overrides of keys of the model, `++model.KEY=VALUE`. `_target_` names a
        subclass of `SAM2Base`, which is built instead.
    image_size: pixels, a multiple of 32; short for the override `++model.image_size=N`.
    dtype: of the weights, torch.float32 (default), bfloat16 or float16.
    seed: of random weights; the global generator is then not used, nor with `ckpt_path`.
    compile: run `torch.compile` on the trunk of the image encoder, which takes long for the first
        image of each size; by default nothing is compiled at run time.
    prove: False: run kernels on a GPU without proving each of them once on the machine
        (docs/proving.md).
    kwargs: those of the official builders are accepted without effect; unknown ones are ignored
        with a warning.
    Raises ValueError for an unknown name, file or override, and CheckpointError for weights that do
    not fit the model.
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
    """The predictor for videos (official `build_sam2_video_predictor`).

    vos_optimized: accepted without effect; on a GPU, frames always run from CUDA graphs.
    The other arguments are those of `build_sam2`.
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
    """`build_sam2` with weights from the Hugging Face Hub or from a local path.

    Downloads are cached, and HF_HUB_OFFLINE is respected.
    """
    return build_sam2(ckpt_path=download(model_id), **kwargs)


def build_sam2_video_predictor_hf(model_id: str, **kwargs: Any) -> SAM2VideoPredictor:
    """`build_sam2_video_predictor` with weights from the Hugging Face Hub or from a local path."""
    return build_sam2_video_predictor(ckpt_path=download(model_id), **kwargs)
