"""J and F compared with their definitions, pixel by pixel, and with OpenCV's dilation."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sam2_fast.evaluation import (
    VideoScores,
    boundary,
    boundary_accuracy,
    near,
    region_similarity,
    tolerance,
)
from sam2_fast.io.rle import decode_rle

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "sav_000001_manual.json"


def random_masks(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Masks of random blobs: [count, height, width] bool."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 1, height // 4 + 2, width // 4 + 2, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")[:, 0] > 0.2


def official_boundary(seg: np.ndarray) -> np.ndarray:
    """The rules of `_seg2bmap`, pixel by pixel."""
    height, width = seg.shape
    edges = np.zeros_like(seg)
    for y in range(height):
        for x in range(width):
            right = x + 1 < width
            below = y + 1 < height
            if right and below:
                edges[y, x] = (
                    seg[y, x] != seg[y, x + 1]
                    or seg[y, x] != seg[y + 1, x]
                    or seg[y, x] != seg[y + 1, x + 1]
                )
            elif right:
                edges[y, x] = seg[y, x] != seg[y, x + 1]
            elif below:
                edges[y, x] = seg[y, x] != seg[y + 1, x]
    return edges


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (13, 17), (32, 20)])
def test_boundaries_equal_the_definition(size: tuple[int, int]) -> None:
    masks = random_masks(6, *size)
    for mask, edges in zip(masks.numpy(), boundary(masks).numpy(), strict=True):
        assert np.array_equal(edges, official_boundary(mask))


@pytest.mark.parametrize("radius", [0, 1, 2, 5, 8, 40])
def test_near_is_a_disk_around_every_point(radius: int) -> None:
    points = torch.rand(4, 23, 31, generator=torch.Generator().manual_seed(radius)) < 0.01
    points[0] = False
    y, x = torch.meshgrid(torch.arange(23), torch.arange(31), indexing="ij")
    for point_mask, dilated in zip(points, near(points, radius), strict=True):
        expected = torch.zeros(23, 31, dtype=torch.bool)
        for row, column in point_mask.nonzero().tolist():
            expected |= (y - row) ** 2 + (x - column) ** 2 <= radius * radius
        assert torch.equal(dilated, expected)


def test_near_equals_opencvs_dilation_with_a_disk() -> None:
    cv2 = pytest.importorskip("cv2", reason="compares with OpenCV")
    edges = boundary(random_masks(8, 120, 90))
    for radius in range(1, 9):
        offset = np.arange(-radius, radius + 1)
        disk = (offset[:, None] ** 2 + offset**2 <= radius * radius).astype(np.uint8)
        for edge_mask, dilated in zip(edges.numpy(), near(edges, radius).numpy(), strict=True):
            assert np.array_equal(dilated, cv2.dilate(edge_mask.astype(np.uint8), disk) > 0)


@pytest.mark.parametrize(
    ("size", "pixels"), [((480, 854), 8), ((1080, 1920), 18), ((848, 480), 8), ((10, 10), 1)]
)
def test_tolerance_is_a_share_of_the_diagonal_rounded_up(
    size: tuple[int, int], pixels: int
) -> None:
    assert tolerance(*size) == pixels and tolerance(*size, bound=3) == 3


def test_scores_of_empty_masks() -> None:
    empty = torch.zeros(20, 20, dtype=torch.bool)
    square = empty.clone()
    square[5:10, 5:10] = True
    for masks, truth, expected in (
        (empty, empty, 1.0),
        (empty, square, 0.0),
        (square, empty, 0.0),
        (square, square, 1.0),
    ):
        assert region_similarity(masks, truth).item() == expected
        assert boundary_accuracy(masks, truth).item() == expected


def test_a_mask_of_the_whole_image_has_no_boundary() -> None:
    whole = torch.ones(20, 20, dtype=torch.bool)
    half = whole.clone()
    half[:, 10:] = False
    assert boundary_accuracy(whole, whole).item() == 1.0
    assert boundary_accuracy(whole, half).item() == 0.0


def test_hand_computed_squares() -> None:
    masks, truth = (torch.zeros(1, 100, 100, dtype=torch.bool) for _ in range(2))
    masks[0, 20:40, 20:40] = True
    truth[0, 20:40, 30:50] = True
    assert region_similarity(masks, truth).item() == 200 / 600
    # Each boundary has 21 x 21 - 19 x 19 = 80 pixels; the tolerance is ceil(0.008 * 141.4) = 2.
    assert boundary(masks).sum() == 80 and tolerance(100, 100) == 2
    shares = []
    mask_points = boundary(masks)[0].nonzero().double()
    truth_points = boundary(truth)[0].nonzero().double()
    for points, others in ((mask_points, truth_points), (truth_points, mask_points)):
        shares.append((torch.cdist(points, others).min(1).values <= 2).double().mean().item())
    assert 0 < shares[0] < 1
    expected = 2 / (1 / shares[0] + 1 / shares[1])
    assert math.isclose(boundary_accuracy(masks, truth).item(), expected)


def test_a_batch_gives_the_scores_of_its_masks_and_padding_changes_nothing() -> None:
    masks = random_masks(6, 60, 80, 1).view(2, 3, 60, 80)
    truth = random_masks(6, 60, 80, 2).view(2, 3, 60, 80)
    masks[0, 0] = False
    truth[1, 2] = False
    batched = boundary_accuracy(masks, truth)
    assert batched.shape == (2, 3) and batched.dtype == torch.float64
    for i in range(2):
        for j in range(3):
            assert batched[i, j] == boundary_accuracy(masks[i, j], truth[i, j])
    far = [torch.nn.functional.pad(x, (500, 400, 300, 200)) for x in (masks, truth)]
    near_ = [torch.nn.functional.pad(x, (9,) * 4) for x in (masks, truth)]
    assert torch.equal(boundary_accuracy(*far, bound=2), boundary_accuracy(*near_, bound=2))


def test_masks_of_another_dtype_or_shape_are_refused() -> None:
    mask = torch.zeros(4, 4, dtype=torch.bool)
    with pytest.raises(TypeError, match=r"truth: expected bool, got torch\.float32"):
        region_similarity(mask, mask.float())
    with pytest.raises(ValueError, match="expected the same shape"):
        boundary_accuracy(mask, torch.zeros(4, 5, dtype=torch.bool))


def shifted(mask: np.ndarray, down: int, right: int) -> np.ndarray:
    moved = np.zeros_like(mask)
    height, width = mask.shape
    target_rows = slice(max(down, 0), height + min(down, 0))
    target_columns = slice(max(right, 0), width + min(right, 0))
    source_rows = slice(max(-down, 0), height + min(-down, 0))
    source_columns = slice(max(-right, 0), width + min(-right, 0))
    moved[target_rows, target_columns] = mask[source_rows, source_columns]
    return moved


GOLDEN = {
    "dx=+5": ((70.4253, 86.4247, 66.7776, 61.2492, 75.4758), (99.9865, 99.9828, 100, 100, 100)),
    "dy=+12, dx=-7": (
        (35.2501, 75.0520, 56.7165, 43.6745, 55.8435),
        (48.4845, 64.1306, 77.6512, 71.3778, 54.4523),
    ),
    "previous": (
        (5.5725, 42.0238, 52.6412, 5.7349, 10.2412),
        (12.6949, 26.6599, 69.3928, 28.6743, 14.8455),
    ),
    "first": ((1.1700, 19.0853, 2.0850, 0, 2.7333), (2.2188, 13.0823, 5.1377, 0, 3.1020)),
    "empty": ((0.8403, 0, 9.2437, 0, 0), (0.8403, 0, 9.2437, 0, 0)),
}


@pytest.mark.parametrize("kind", GOLDEN)
def test_scores_equal_those_of_the_official_evaluator(kind: str) -> None:
    if not SHARED.is_file():
        pytest.skip("no sav_000001_manual.json in ../shared/data")
    frames = [
        [decode_rle(rle) for rle in frame] for frame in json.loads(SHARED.read_text())["masklet"]
    ]
    for number, (j, f) in enumerate(zip(*GOLDEN[kind], strict=True)):
        scores = VideoScores()
        for t in range(1, len(frames) - 1):
            truth = frames[t][number]
            predictions = {
                "dx=+5": shifted(truth, 0, 5),
                "dy=+12, dx=-7": shifted(truth, 12, -7),
                "previous": frames[t - 1][number],
                "first": frames[0][number],
                "empty": np.zeros_like(truth),
            }
            scores.add({1: truth}, {1: predictions[kind]})
        (row,) = scores.result("sav_000001")
        assert (round(100 * row.j, 4), round(100 * row.f, 4)) == (j, f)
