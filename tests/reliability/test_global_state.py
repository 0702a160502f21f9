"""No public call changes settings, random numbers or resources of its process."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sam2_fast
from sam2_fast.video.predictor import SAM2VideoPredictor
from tests.reliability.image_models import shared_model
from tests.test_image_predictor import SMALL

ROOT = Path(__file__).resolve().parents[2]
DECODER = "++model.sam_mask_decoder_extra_args.dynamic_multimask_via_stability=true"


@pytest.mark.reliability("F12")
@pytest.mark.parametrize("build", [sam2_fast.build_sam2, sam2_fast.build_sam2_video_predictor])
@pytest.mark.parametrize("overrides", [[], [DECODER]])
@pytest.mark.parametrize("seed", [None, 3])
def test_building_a_model_with_weights_draws_no_random_numbers(
    build: Callable[..., Any], overrides: list[str], seed: int | None
) -> None:
    state = shared_model().state_dict()
    torch.manual_seed(0)
    before = torch.get_rng_state(), str(np.random.get_state()), random.getstate()
    model = build(SMALL, state, device="cpu", hydra_overrides_extra=overrides, seed=seed)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (str(np.random.get_state()), random.getstate()) == before[1:]
    assert isinstance(model, SAM2VideoPredictor) == (build is not sam2_fast.build_sam2)


@pytest.mark.reliability("F12")
def test_no_call_changes_the_process() -> None:
    process = subprocess.run(
        [sys.executable, "-m", "tests.reliability.process_state"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout) == {}
