"""`sam2.build_sam`."""

from __future__ import annotations

from pathlib import Path

from sam2_fast.build_sam import build_sam2 as build_sam2
from sam2_fast.build_sam import build_sam2_hf as build_sam2_hf
from sam2_fast.build_sam import build_sam2_video_predictor as build_sam2_video_predictor
from sam2_fast.build_sam import build_sam2_video_predictor_hf as build_sam2_video_predictor_hf
from sam2_fast.model import Sam2
from sam2_fast.weights.checkpoint import CheckpointError, load_weights, read_state_dict
from sam2_fast.weights.hub import HF_MODEL_ID_TO_FILENAMES as HF_MODEL_ID_TO_FILENAMES
from sam2_fast.weights.hub import download


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
