"""Simulated clicks are in the correct region, or at its centre by exact distances."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sam2_fast.data.clicks import (
    get_next_point,
    sample_box_points,
    sample_one_point_from_error_center,
    sample_random_points_from_errors,
    squared_distance_to_background,
)


def random_masks(seed: int, count: int = 3, height: int = 33, width: int = 47) -> torch.Tensor:
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    centre = generator.integers(0, 40, (count, 2, 1, 1))
    radius = generator.integers(4, 20, (count, 1, 1))
    return torch.from_numpy((y - centre[:, 0]) ** 2 + (x - centre[:, 1]) ** 2 < radius**2)[:, None]


@pytest.mark.parametrize("border", [True, False])
def test_distances_are_exact(border: bool) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    masks = random_masks(0)[:, 0]
    for mask, squares in zip(masks, squared_distance_to_background(masks, border), strict=True):
        padded = np.pad(mask.numpy(), 1, constant_values=not border)
        expected = ndimage.distance_transform_edt(padded)[1:-1, 1:-1]
        assert np.array_equal(np.rint(expected**2), squares.numpy())


def test_a_click_is_at_the_centre_of_the_deepest_error() -> None:
    cv2 = pytest.importorskip("cv2")
    truth, predicted = random_masks(1), random_masks(2)
    points, labels = sample_one_point_from_error_center(truth, predicted)
    assert (points.shape, points.dtype) == ((3, 1, 2), torch.float32)
    assert (labels.shape, labels.dtype) == ((3, 1), torch.int32)
    for i in range(3):
        depth = []
        for region in ((~truth & predicted)[i, 0], (truth & ~predicted)[i, 0]):
            padded = np.pad(region.numpy().astype(np.uint8), 1)
            depth.append(cv2.distanceTransform(padded, cv2.DIST_L2, 0)[1:-1, 1:-1])
        x, y = points[i, 0].int().tolist()
        assert depth[labels[i, 0]][y, x] == pytest.approx(max(d.max() for d in depth))


def test_random_clicks_are_on_errors() -> None:
    truth, predicted = random_masks(3), random_masks(4)
    points, labels = sample_random_points_from_errors(truth, predicted, 50)
    x, y = points.long().unbind(-1)
    rows = torch.arange(3)[:, None]
    assert ((truth ^ predicted)[rows, 0, y, x]).all()
    assert torch.equal(truth[rows, 0, y, x].int(), labels)
    # Without errors, clicks are on the background.
    points, labels = sample_random_points_from_errors(truth, truth, 5)
    x, y = points.long().unbind(-1)
    assert not truth[rows, 0, y, x].any()
    assert not labels.any()


def test_boxes_have_labels_and_bounded_noise() -> None:
    masks = torch.zeros(1, 1, 40, 50, dtype=torch.bool)
    masks[0, 0, 5:15, 20:45] = True
    exact, labels = sample_box_points(masks, noise=0.0)
    assert exact.tolist() == [[[20, 5], [44, 14]]]
    assert labels.tolist() == [[2, 3]]
    for _ in range(20):
        noisy = sample_box_points(masks.expand(4, -1, -1, -1))[0]
        assert (noisy - exact).abs().amax((0, 1)).le(torch.tensor([2.4, 0.9])).all()


def test_invalid_arguments_are_refused() -> None:
    masks = random_masks(0)
    assert get_next_point(masks, None, "center")[1].all()
    assert get_next_point(masks, None, "uniform")[1].all()
    with pytest.raises(ValueError, match="method"):
        get_next_point(masks, None, "median")
    with pytest.raises(ValueError, match="gt_masks"):
        get_next_point(masks.float(), None, "center")
