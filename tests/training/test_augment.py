"""Augmentation transforms masks like their pixels, and all frames of a clip alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sam2_fast.io.transforms import PIXEL_MEAN, PIXEL_STD
from sam2_fast.training import Clip
from sam2_fast.training.augment import FLIPPED, NONE, Augmentation, augment

SIZE = 96


def scene() -> tuple[list[np.ndarray], np.ndarray]:
    """Two dark frames, 120 x 160, with two bright objects; masks: [2, 2, 120, 160] bool."""
    masks = np.zeros((2, 2, 120, 160), dtype=bool)
    for t in range(2):
        masks[t, 0, 30:80, 20 + 10 * t : 60 + 10 * t] = True
        masks[t, 1, 60:110, 90:140] = True
    images = [np.where(frame.any(0)[..., None], 250, 20) for frame in masks]
    return [image.astype(np.uint8).repeat(3, 2) for image in images], masks


def pixels(clip: Clip) -> torch.Tensor:
    """Pixels of the frames from 0 to 1: [T, 3, S, S]."""
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (PIXEL_MEAN, PIXEL_STD))
    return clip.images * std + mean


OPTIONS = [Augmentation(), Augmentation(mosaic=1.0), FLIPPED, NONE]


@pytest.mark.parametrize("augmentation", OPTIONS)
def test_masks_are_transformed_like_their_pixels(augmentation: Augmentation) -> None:
    images, masks = scene()
    for seed in range(12):
        clip = augment(images, masks, seed, SIZE, augmentation)
        assert clip.images.shape == (2, 3, SIZE, SIZE)
        assert clip.truth.shape == (2, 2, SIZE, SIZE)
        assert clip.seed == seed
        bright = pixels(clip).mean(1) > 0.65
        truth = clip.truth.any(1)
        # Rotation blurs the edges.
        assert (truth & ~bright).sum() <= 0.12 * truth.sum()
        if augmentation.mosaic == 0:
            assert (truth & bright).sum() >= 0.9 * bright.sum()


def test_without_augmentation_a_clip_is_only_resized() -> None:
    images, masks = scene()
    clip = augment(images, masks, 0, SIZE, NONE)
    assert torch.equal(clip.truth, augment(images, masks, 1, SIZE, NONE).truth)
    assert clip.truth[0, 0, 24:64, 12:36].all() and clip.truth[0, 0].sum() == 40 * 24


def test_transformations_have_the_requested_probabilities() -> None:
    images, masks = scene()
    seeds = range(200)
    unchanged = augment(images, masks, 0, SIZE, NONE).truth
    flipped = [
        torch.equal(augment(images, masks, seed, SIZE, FLIPPED).truth, unchanged.flip(-1))
        for seed in seeds
    ]
    assert 70 < sum(flipped) < 130
    coloured = [image // np.array([1, 2, 1], np.uint8) for image in images]
    clips = [pixels(augment(coloured, masks, seed, SIZE, Augmentation(grey=0.5))) for seed in seeds]
    assert 70 < sum(torch.allclose(x[0, 0], x[0, 1], atol=1e-6) for x in clips) < 130


def test_frames_are_moved_alike_and_coloured_separately() -> None:
    images, masks = scene()
    images[1] = images[0]
    masks[1] = masks[0]
    clip = augment(images, masks, 3, SIZE, Augmentation())
    assert torch.equal(clip.truth[0], clip.truth[1])
    assert not torch.equal(clip.images[0], clip.images[1])


def test_every_object_is_visible_on_the_first_frame_after_a_rotation() -> None:
    image = np.zeros((100, 100, 3), np.uint8)
    masks = np.zeros((1, 1, 100, 100), dtype=bool)
    masks[0, 0, 0:3, 0:3] = True
    rotation = Augmentation(degrees=90.0)
    assert all(augment([image], masks, seed, 100, rotation).truth.any() for seed in range(40))


def test_a_mosaic_repeats_the_clip_four_times_and_has_the_masks_of_one_tile() -> None:
    images, masks = scene()
    mosaic = Augmentation(degrees=0, shear=0, mosaic=1.0)
    tiles = set()
    for seed in range(30):
        truth = augment(images, masks, seed, SIZE, mosaic).truth
        rows = truth[0].any(0).any(1).nonzero()
        columns = truth[0].any(0).any(0).nonzero()
        assert rows.min() // 48 == rows.max() // 48 and columns.min() // 48 == columns.max() // 48
        tiles.add((int(rows.min()) // 48, int(columns.min()) // 48))
    assert tiles == {(0, 0), (0, 1), (1, 0), (1, 1)}


@pytest.mark.parametrize(
    "change",
    [{"flip": 1.5}, {"shear": 90.0}, {"jitter": (0.1, 0.1)}, {"frame_jitter": (0.1, 1.0, 0.1)}],
)
def test_impossible_ranges_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="augmentation: expected"):
        Augmentation(**change)
