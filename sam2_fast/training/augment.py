"""Augment clips for training: flip, rotate, shear, resize to a square, change colours.

Source: `sam2.1_hiera_b+_MOSE_finetune.yaml` and `training/dataset/transforms.py` of the official
    code, with Pillow's operations as there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageEnhance

from sam2_fast.io.transforms import normalize_frame
from sam2_fast.training.batches import Clip

Pixels = npt.NDArray[np.uint8]
Masks = npt.NDArray[np.bool_]
FILL = (123, 116, 103)
"""Colour of the area that a rotation or shear moves into the image: about the mean of ImageNet."""


@dataclass(frozen=True)
class Augmentation:
    """Probabilities and ranges. The geometry is drawn once per clip.

    Jitters are for brightness, contrast and saturation; the factors are around 1.
    """

    flip: float = 0.5  # probability
    degrees: float = 25.0
    shear: float = 20.0  # degrees
    jitter: tuple[float, float, float] = (0.1, 0.03, 0.03)  # drawn once per clip
    grey: float = 0.05  # probability
    frame_jitter: tuple[float, float, float] = (0.1, 0.05, 0.05)  # drawn for every frame
    # probability of a 2 x 2 mosaic of the clip with itself; one tile keeps its masks
    mosaic: float = 0.0

    def __post_init__(self) -> None:
        if (
            any(not 0 <= p <= 1 for p in (self.flip, self.grey, self.mosaic))
            or min(self.degrees, self.shear) < 0
            or self.shear >= 90
        ):
            raise ValueError(
                "augmentation: expected probabilities of 0 to 1, degrees of 0 or more, shear of 0 "
                "to 90"
            )
        if any(len(j) != 3 or min(j) < 0 or max(j) >= 1 for j in (self.jitter, self.frame_jitter)):
            raise ValueError(
                "augmentation: expected jitters of three numbers, brightness, contrast and "
                "saturation, each in [0, 1)"
            )


NONE = Augmentation(0.0, 0.0, 0.0, (0.0, 0.0, 0.0), 0.0, (0.0, 0.0, 0.0))
"""Only the resize."""
FLIPPED = replace(NONE, flip=0.5)
"""The augmentation of images (SAM 2 paper, table 13a)."""


def augment(
    images: Sequence[Pixels], masks: Masks, seed: int, size: int, augmentation: Augmentation
) -> Clip:
    """A clip of size x size pixels, augmented with random numbers from `seed`.

    images: T of [H, W, 3] uint8.
    masks: [T, N, H, W] bool.
    A rotation or shear that moves an object off the first frame is skipped.
    """
    rng = np.random.default_rng([seed, 2])
    height, width = images[0].shape[:2]
    flip = bool(rng.random() < augmentation.flip)
    matrix = _random_matrix(rng, augmentation, width, height)
    if matrix is not None and not all(
        _transform(_grey(mask), flip, matrix, Image.Resampling.NEAREST, 0).getbbox()
        for mask in masks[0]
    ):
        matrix = None
    smooth, nearest = Image.Resampling.BILINEAR, Image.Resampling.NEAREST
    shown = [
        _transform(Image.fromarray(image), flip, matrix, smooth, FILL).resize((size, size), smooth)
        for image in images
    ]
    shown_masks = [
        [
            _transform(_grey(mask), flip, matrix, nearest, 0).resize((size, size), smooth)
            for mask in frame
        ]
        for frame in masks
    ]
    colours = _jitter(rng, augmentation.jitter)
    grey = bool(rng.random() < augmentation.grey)
    shown = [_recolour(image, colours, grey) for image in shown]
    shown = [_recolour(image, _jitter(rng, augmentation.frame_jitter), False) for image in shown]
    if rng.random() < augmentation.mosaic:
        shown, shown_masks = _mosaic(rng, shown, shown_masks)
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in shown]))
    truth = torch.from_numpy(
        np.stack([[np.asarray(mask) >= 128 for mask in frame] for frame in shown_masks])
    )
    return Clip(normalize_frame(pixels), truth, seed)


def _random_matrix(
    rng: np.random.Generator, augmentation: Augmentation, width: int, height: int
) -> tuple[float, ...] | None:
    """Coefficients for Pillow, which map output pixels to input pixels; None for no change.

    They are the inverse of a shear along x and a rotation about the centre.
    """
    angle = np.deg2rad(rng.uniform(-augmentation.degrees, augmentation.degrees))
    shear = np.deg2rad(rng.uniform(-augmentation.shear, augmentation.shear))
    if not augmentation.degrees and not augmentation.shear:
        return None
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    inverse = np.linalg.inv(rotation @ np.array([[1, -np.tan(shear)], [0, 1]]))
    centre = np.array([width / 2, height / 2])
    offset = centre - inverse @ centre
    return (*inverse[0], offset[0], *inverse[1], offset[1])


def _grey(mask: npt.NDArray[np.bool_]) -> Image.Image:
    return Image.fromarray(mask.astype(np.uint8) * 255)


def _transform(
    image: Image.Image,
    flip: bool,
    matrix: tuple[float, ...] | None,
    resampling: Image.Resampling,
    fill: int | tuple[int, int, int],
) -> Image.Image:
    image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image
    return (
        image
        if matrix is None
        else image.transform(image.size, Image.Transform.AFFINE, matrix, resampling, fillcolor=fill)
    )


_Colours = list[tuple[Callable[[Image.Image], ImageEnhance._Enhance], float]]


def _jitter(rng: np.random.Generator, ranges: tuple[float, float, float]) -> _Colours:
    """Brightness, contrast and saturation in random order, with factors around 1."""
    kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    return [
        (kinds[i], float(rng.uniform(1 - ranges[i], 1 + ranges[i]))) for i in rng.permutation(3)
    ]


def _recolour(image: Image.Image, colours: _Colours, grey: bool) -> Image.Image:
    for kind, factor in colours:
        image = image if factor == 1.0 else kind(image).enhance(factor)
    return image.convert("L").convert("RGB") if grey else image


def _mosaic(
    rng: np.random.Generator, images: list[Image.Image], masks: list[list[Image.Image]]
) -> tuple[list[Image.Image], list[list[Image.Image]]]:
    """Four small copies of the clip, each flipped or not; one random copy keeps its masks."""
    size = images[0].size[0]
    edges = (0, size // 2, size)
    target = int(rng.integers(4))
    flips = rng.random(4) < 0.5

    def tile(image: Image.Image, number: int) -> tuple[Image.Image, tuple[int, int]]:
        left, top = edges[number % 2], edges[number // 2]
        small = image.resize(
            (edges[number % 2 + 1] - left, edges[number // 2 + 1] - top), Image.Resampling.BILINEAR
        )
        if flips[number]:
            small = small.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return small, (left, top)

    def assemble(image: Image.Image, numbers: Sequence[int]) -> Image.Image:
        whole = Image.new(image.mode, image.size)
        for number in numbers:
            whole.paste(*tile(image, number))
        return whole

    return (
        [assemble(image, range(4)) for image in images],
        [[assemble(mask, [target]) for mask in frame] for frame in masks],
    )
