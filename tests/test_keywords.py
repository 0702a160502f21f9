"""Keyword arguments of builders and predictors: unknown ones are ignored as upstream, but never in
silence.
"""

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
WAYS: dict[str, Callable[..., Any]] = {
    "build_sam2": lambda **more: build_sam2(SMALL, device="cpu", **more),
    "build_sam2_video_predictor": lambda **more: build_sam2_video_predictor(
        SMALL, device="cpu", **more
    ),
    "build_sam2_hf": lambda **more: build_sam2_hf("nano", device="cpu", **more),
    "build_sam2_video_predictor_hf": lambda **more: build_sam2_video_predictor_hf(
        "nano", device="cpu", **more
    ),
    "SAM2ImagePredictor": lambda **more: SAM2ImagePredictor(
        build_sam2(SMALL, device="cpu"), **more
    ),
    "SAM2ImagePredictor.from_pretrained": lambda **more: SAM2ImagePredictor.from_pretrained(
        "nano", device="cpu", **more
    ),
    "SAM2AutomaticMaskGenerator": lambda **more: SAM2AutomaticMaskGenerator(
        build_sam2(SMALL, device="cpu"), **more
    ),
    "SAM2VideoPredictor.from_pretrained": lambda **more: SAM2VideoPredictor.from_pretrained(
        "nano", device="cpu", **more
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_misspelt_keyword_argument_warns_and_says_what_was_meant(way: str) -> None:
    with pytest.warns(
        UserWarning,
        match="unknown keyword argument 'imagesize' is ignored; did you mean 'image_size'",
    ) as warned:
        WAYS[way](imagesize=512)
    assert {warning.filename for warning in warned} == {__file__}, (
        "the line that called the package"
    )


@pytest.mark.parametrize("way", WAYS)
def test_keyword_arguments_of_the_official_functions_are_accepted(way: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        WAYS[way](
            use_vos_optimized_video_predictor=False,
            **({} if "from_pretrained" in way else {"load_from_HF": True}),
        )


def test_keyword_arguments_of_a_predictor_pass_through_from_pretrained() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predictor = SAM2ImagePredictor.from_pretrained(
            "nano", device="cpu", mask_threshold=0.5, mode="eval"
        )
        generator = SAM2AutomaticMaskGenerator.from_pretrained(
            "nano", device="cpu", points_per_side=4
        )
    assert predictor.mask_threshold == 0.5 and len(generator.point_grids[0]) == 16


def test_a_word_like_no_other_lists_what_is_known() -> None:
    with pytest.warns(UserWarning, match="'zzz' is ignored; known are .*image_size"):
        build_sam2(SMALL, device="cpu", zzz=1)
