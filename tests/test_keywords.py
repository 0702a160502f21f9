"""Unknown keyword arguments of builders and predictors are ignored with a warning."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest

from sam2_fast import (
    SAM2AutomaticMaskGenerator,
    SAM2ImagePredictor,
    SAM2VideoPredictor,
    build_sam2,
    build_sam2_hf,
    build_sam2_video_predictor,
    build_sam2_video_predictor_hf,
)
from sam2_fast.config import Sam2Config

SMALL = Sam2Config(
    embed_dim=16, stages=(1, 1, 1, 1), global_blocks=(), image_size=64, memory_layers=1
)
CALLS: dict[str, Callable[..., Any]] = {
    "build_sam2": lambda **k: build_sam2(SMALL, device="cpu", **k),
    "build_sam2_video_predictor": lambda **k: build_sam2_video_predictor(SMALL, device="cpu", **k),
    "build_sam2_hf": lambda **k: build_sam2_hf("nano", device="cpu", **k),
    "build_sam2_video_predictor_hf": lambda **k: build_sam2_video_predictor_hf(
        "nano", device="cpu", **k
    ),
    "SAM2ImagePredictor": lambda **k: SAM2ImagePredictor(build_sam2(SMALL, device="cpu"), **k),
    "SAM2ImagePredictor.from_pretrained": lambda **k: SAM2ImagePredictor.from_pretrained(
        "nano", device="cpu", **k
    ),
    "SAM2AutomaticMaskGenerator": lambda **k: SAM2AutomaticMaskGenerator(
        build_sam2(SMALL, device="cpu"), **k
    ),
    "SAM2VideoPredictor.from_pretrained": lambda **k: SAM2VideoPredictor.from_pretrained(
        "nano", device="cpu", **k
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_misspelt_keyword_argument_warns_with_the_correct_spelling(name: str) -> None:
    message = "unknown keyword argument 'imagesize' is ignored; did you mean 'image_size'"
    with pytest.warns(UserWarning, match=message) as record:
        CALLS[name](imagesize=512)
    # The warning has the position of the call.
    assert {warning.filename for warning in record} == {__file__}


@pytest.mark.parametrize("name", CALLS)
def test_keyword_arguments_of_the_official_functions_are_accepted(name: str) -> None:
    options = {} if "from_pretrained" in name else {"load_from_HF": True}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CALLS[name](use_vos_optimized_video_predictor=False, **options)


def test_from_pretrained_passes_keyword_arguments_to_the_predictor() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predictor = SAM2ImagePredictor.from_pretrained(
            "nano", device="cpu", mask_threshold=0.5, mode="eval"
        )
        generator = SAM2AutomaticMaskGenerator.from_pretrained(
            "nano", device="cpu", points_per_side=4
        )
    assert predictor.mask_threshold == 0.5 and len(generator.point_grids[0]) == 16


def test_the_warning_lists_known_arguments_if_none_is_similar() -> None:
    with pytest.warns(UserWarning, match="'zzz' is ignored; known are .*image_size"):
        build_sam2(SMALL, device="cpu", zzz=1)
