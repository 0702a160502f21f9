"""Functions on masks, compared with simple implementations of the official definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from sam2_fast import masks
from sam2_fast.ops.connected_components import connected_components_reference

LOGITS = hnp.arrays(
    np.float32,
    st.tuples(st.integers(0, 3), st.just(1), st.integers(1, 12), st.integers(1, 12)),
    elements=st.sampled_from([-3.0, 0.0, 2.0]),
)


def in_small_components(mask: Tensor, max_area: float) -> Tensor:
    """Pixels that belong to a component of at most `max_area` pixels. mask: [N, 1, H, W]."""
    labels, areas = connected_components_reference(mask[:, 0])
    return ((labels > 0) & (areas <= max_area))[:, None]


@settings(max_examples=60, deadline=None)
@given(LOGITS, st.integers(1, 20))
def test_holes_of_a_video_frame_are_filled(array: np.ndarray, area: int) -> None:
    logits = torch.from_numpy(array)
    before = logits.clone()
    expected = torch.where(in_small_components(logits <= 0, area), torch.tensor(0.1), logits)
    assert torch.equal(masks.fill_holes(logits, area), expected)
    assert torch.equal(logits, before)


@settings(max_examples=60, deadline=None)
@given(
    LOGITS,
    st.sampled_from([0.0, 0.5, 1.0, 6.5]),
    st.sampled_from([0.0, 1.0, 4.0]),
    st.sampled_from([0.0, 1.0, -4.0]),
)
def test_holes_and_specks_of_an_image_are_removed(
    array: np.ndarray, hole: float, speck: float, threshold: float
) -> None:
    logits = torch.from_numpy(array)
    expected = logits
    if hole > 0:
        expected = torch.where(
            in_small_components(logits <= threshold, hole), threshold + 10.0, expected
        )
    if speck > 0:  # components of the original mask, not of the filled one
        expected = torch.where(
            in_small_components(logits > threshold, speck), threshold - 10.0, expected
        )
    cleaned = masks.remove_holes_and_specks(
        logits, threshold=threshold, max_hole_area=hole, max_speck_area=speck
    )
    assert torch.equal(cleaned, expected.float())


def test_nan_is_neither_hole_nor_speck() -> None:
    logits = torch.full((1, 1, 5, 5), 3.0)
    logits[0, 0, 2, 2] = torch.nan
    areas = {"max_hole_area": 9, "max_speck_area": 9}
    cleaned = masks.remove_holes_and_specks(logits, threshold=0.0, **areas)
    assert torch.equal(torch.isnan(cleaned), torch.isnan(logits))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_dtype_does_not_change(dtype: torch.dtype) -> None:
    logits = torch.full((2, 1, 4, 4), 1.0, dtype=dtype)
    logits[:, :, 1, 1] = -1
    assert masks.fill_holes(logits, 8).dtype == dtype
    areas = {"max_hole_area": 2, "max_speck_area": 2}
    assert masks.remove_holes_and_specks(logits, threshold=0.0, **areas).dtype == dtype


def test_a_pixel_belongs_to_the_object_of_the_highest_logit() -> None:
    logits = torch.randn(4, 1, 9, 7, generator=torch.Generator().manual_seed(0)) * 12
    separated = masks.non_overlapping(logits)
    for n in range(4):
        highest = logits[n] == logits.amax(0)
        assert torch.equal(separated[n][highest], logits[n][highest])
        assert torch.equal(separated[n][~highest], logits[n][~highest].clamp(max=-10))
    assert torch.equal(masks.non_overlapping(logits[:1]), logits[:1])
    # Of equal logits the first one counts.
    equal = torch.ones(2, 1, 2, 2)
    assert torch.equal(masks.non_overlapping(equal)[:, 0, 0, 0], torch.tensor([1.0, -10.0]))


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(bool, st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9))))
def test_boxes_contain_every_pixel(array: np.ndarray) -> None:
    for mask, box in zip(array, masks.boxes(torch.from_numpy(array)).tolist(), strict=True):
        y, x = np.nonzero(mask)
        assert box == ([x.min(), y.min(), x.max(), y.max()] if x.size else [0, 0, 0, 0])


def test_boxes_accept_any_leading_dimensions() -> None:
    assert masks.boxes(torch.ones(3, 4, dtype=torch.bool)).tolist() == [0, 0, 3, 2]
    assert masks.boxes(torch.zeros(2, 0, 5, 5, dtype=torch.bool)).shape == (2, 0, 4)
    assert masks.boxes(torch.zeros(2, 0, 5, dtype=torch.bool)).tolist() == [[0, 0, 0, 0]] * 2


def test_stability_scores_count_pixels_beyond_the_range_of_int16() -> None:
    logits = torch.full((1, 1, 300), 2.0).expand(2, 300, 300).clone()
    logits[0, 0, :75] = 0.0  # within +-1 of the threshold
    logits[1] = -5.0
    score = masks.stability_score(logits, 0.0, 1.0)
    assert score[0] == (90_000 - 75) / 90_000
    assert torch.isnan(score[1])  # 0 / 0, as in the official code
    long_row = torch.full((1, 1, 40_000), 2.0)
    assert masks.stability_score(long_row, 0.0, 1.0).tolist() == [1.0]


def test_upsampling_to_the_same_size_returns_the_input() -> None:
    logits = torch.randn(2, 3, 4, 5)
    assert masks.upsample(logits, (4, 5)) is logits
    assert masks.upsample(logits, (8, 9)).shape == (2, 3, 8, 9)
    assert masks.upsample(logits[:0], (8, 9)).shape == (0, 3, 8, 9)


def test_a_wrong_shape_is_named() -> None:
    with pytest.raises(ValueError, match=r"logits: expected shape \[N, M, H, W\], got \(4, 4\)"):
        masks.fill_holes(torch.zeros(4, 4), 8)
