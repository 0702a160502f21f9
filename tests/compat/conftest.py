"""Weights and frames for programs that are written for the official package."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sam2_fast.build_sam import build_sam2
from tests.compat.programs import write_clip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of the tiny model in the official layout; no parameter is constant."""
    model = build_sam2("tiny", device="cpu", seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() > 1 and parameter.std() < 1e-5:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        # Objects must be present: absent ones have no mask.
        model.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.fill_(2.0)
    path = tmp_path_factory.mktemp("weights") / "checkpoints" / "sam2.1_hiera_tiny.pt"
    path.parent.mkdir()
    torch.save({"model": model.state_dict()}, path)
    return path


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three frames, 160 x 120, of a bright square that moves over noise."""
    folder = tmp_path_factory.mktemp("videos") / "clip"
    write_clip(folder, 3)
    return folder
