"""Augmentation: masks go where their pixels go, every draw has its seed, and frames of a clip move
as one.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sam2_fast.io.transforms import PIXEL_MEAN, PIXEL_STD
from sam2_fast.training import Clip
from sam2_fast.training.augment import FLIPPED, NONE, Augmentation, augment

SIZE = 96


def scene() -> tuple[list[np.ndarray], np.ndarray]:
    """Two frames, 120 x 160, dark, with a bright object each; masks [2, 2, 120, 160]."""
    masks = np.zeros((2, 2, 120, 160), dtype=bool)
    for t in range(2):
        masks[t, 0, 30:80, 20 + 10 * t : 60 + 10 * t] = True
        masks[t, 1, 60:110, 90:140] = True
    return [
        np.where(frame.any(0)[..., None], 250, 20).astype(np.uint8).repeat(3, 2) for frame in masks
    ], masks


def pixels(clip: Clip) -> torch.Tensor:
    """[T, 3, S, S], 0 to 1."""
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (PIXEL_MEAN, PIXEL_STD))
    return clip.images * std + mean


@pytest.mark.parametrize("how", [Augmentation(), Augmentation(mosaic=1.0), FLIPPED, NONE])
def test_masks_go_where_their_pixels_go(how: Augmentation) -> None:
    images, masks = scene()
    for seed in range(12):
        clip = augment(images, masks, seed, SIZE, how)
        assert (
            clip.images.shape == (2, 3, SIZE, SIZE)
            and clip.truth.shape == (2, 2, SIZE, SIZE)
            and clip.seed == seed
        )
        bright, found = pixels(clip).mean(1) > 0.65, clip.truth.any(1)
        assert (found & ~bright).sum() <= 0.12 * found.sum(), (
            "edges are blurred by turning, and no more than edges"
        )
        if how.mosaic == 0:
            assert (found & bright).sum() >= 0.9 * bright.sum()


def test_without_augmentation_a_clip_is_resized() -> None:
    images, masks = scene()
    clip = augment(images, masks, 0, SIZE, NONE)
    assert torch.equal(clip.truth, augment(images, masks, 1, SIZE, NONE).truth)
    assert clip.truth[0, 0, 24:64, 12:36].all() and clip.truth[0, 0].sum() == 40 * 24


def test_draws_have_the_chances_that_are_asked_for() -> None:
    images, masks = scene()
    seeds = range(200)
    plain = augment(images, masks, 0, SIZE, NONE).truth
    flipped = [
        torch.equal(augment(images, masks, seed, SIZE, FLIPPED).truth, plain.flip(-1))
        for seed in seeds
    ]
    assert 70 < sum(flipped) < 130
    coloured = [
        np.stack([image[..., 0], image[..., 1] // 2, image[..., 2]], -1) for image in images
    ]
    grey = [pixels(augment(coloured, masks, seed, SIZE, Augmentation(grey=0.5))) for seed in seeds]
    assert 70 < sum(torch.allclose(x[0, 0], x[0, 1], atol=1e-6) for x in grey) < 130


def test_frames_move_as_one_and_are_coloured_one_by_one() -> None:
    images, masks = scene()
    images[1], masks[1] = images[0], masks[0]
    clip = augment(images, masks, 3, SIZE, Augmentation())
    assert torch.equal(clip.truth[0], clip.truth[1]) and not torch.equal(
        clip.images[0], clip.images[1]
    )


def test_a_turn_keeps_every_object_on_the_first_frame() -> None:
    image, masks = np.zeros((100, 100, 3), np.uint8), np.zeros((1, 1, 100, 100), dtype=bool)
    masks[0, 0, 0:3, 0:3] = True
    assert all(
        augment([image], masks, seed, 100, Augmentation(degrees=90.0)).truth.any()
        for seed in range(40)
    )


def test_a_mosaic_shows_the_clip_four_times_and_means_one() -> None:
    images, masks = scene()
    tiles = set()
    for seed in range(30):
        truth = augment(
            images, masks, seed, SIZE, Augmentation(degrees=0, shear=0, mosaic=1.0)
        ).truth
        rows, columns = truth[0].any(0).any(1).nonzero(), truth[0].any(0).any(0).nonzero()
        assert rows.min() // 48 == rows.max() // 48 and columns.min() // 48 == columns.max() // 48
        tiles.add((int(rows.min()) // 48, int(columns.min()) // 48))
    assert tiles == {(0, 0), (0, 1), (1, 0), (1, 1)}


@pytest.mark.parametrize(
    "change",
    [{"flip": 1.5}, {"shear": 90.0}, {"jitter": (0.1, 0.1)}, {"frame_jitter": (0.1, 1.0, 0.1)}],
)
def test_ranges_that_cannot_be_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="augmentation: expected"):
        Augmentation(**change)
