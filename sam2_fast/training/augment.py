"""Clips as they were filmed to clips as training sees them: flipped, turned, sheared, resized to a
square, recoloured.

Source: `sam2.1_hiera_b+_MOSE_finetune.yaml` and `training/dataset/transforms.py` upstream, with
    Pillow's operations, as there.
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
"""The colour of what turning brings in from outside: about the mean of ImageNet."""


@dataclass(frozen=True)
class Augmentation:
    """Chances and ranges. Geometry is one draw a clip. Jitters are of brightness, contrast and
    saturation, around 1.
    """

    flip: float = 0.5  # probability
    degrees: float = 25.0
    shear: float = 20.0  # degrees
    jitter: tuple[float, float, float] = (0.1, 0.03, 0.03)  # one draw a clip
    grey: float = 0.05  # probability
    frame_jitter: tuple[float, float, float] = (0.1, 0.05, 0.05)  # a draw a frame
    mosaic: float = (
        0.0  # probability of a 2 x 2 mosaic of the clip with itself, of which one tile is meant
    )

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
"""Nothing but the resize."""
FLIPPED = replace(NONE, flip=0.5)
"""What images are trained with (SAM 2 paper, table 13a)."""


def augment(
    images: Sequence[Pixels], masks: Masks, seed: int, size: int, how: Augmentation
) -> Clip:
    """images: T of [H, W, 3]; masks: [T, N, H, W] bool -> the clip at size x size pixels, drawn
    from `seed`.

    A turn that takes an object off the first frame is not made.
    """
    rng = np.random.default_rng([seed, 2])
    height, width = images[0].shape[:2]
    flip, turn = bool(rng.random() < how.flip), _turn(rng, how, width, height)
    if turn is not None and not all(
        _geometry(_grey(mask), flip, turn, Image.Resampling.NEAREST, 0).getbbox()
        for mask in masks[0]
    ):
        turn = None
    smooth, nearest = Image.Resampling.BILINEAR, Image.Resampling.NEAREST
    shown = [
        _geometry(Image.fromarray(image), flip, turn, smooth, FILL).resize((size, size), smooth)
        for image in images
    ]
    found = [
        [
            _geometry(_grey(mask), flip, turn, nearest, 0).resize((size, size), smooth)
            for mask in frame
        ]
        for frame in masks
    ]
    colours, grey = _jitter(rng, how.jitter), bool(rng.random() < how.grey)
    shown = [_recoloured(image, colours, grey) for image in shown]
    shown = [_recoloured(image, _jitter(rng, how.frame_jitter), False) for image in shown]
    if rng.random() < how.mosaic:
        shown, found = _mosaic(rng, shown, found)
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in shown]))
    truth = torch.from_numpy(
        np.stack([[np.asarray(mask) >= 128 for mask in frame] for frame in found])
    )
    return Clip(normalize_frame(pixels), truth, seed)


def _turn(
    rng: np.random.Generator, how: Augmentation, width: int, height: int
) -> tuple[float, ...] | None:
    """Where each pixel comes from, as Pillow wants it: the inverse of a shear along x and a
    rotation about the middle.
    """
    angle, shear = (
        np.deg2rad(rng.uniform(-how.degrees, how.degrees)),
        np.deg2rad(rng.uniform(-how.shear, how.shear)),
    )
    if not how.degrees and not how.shear:
        return None
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    inverse = np.linalg.inv(rotation @ np.array([[1, -np.tan(shear)], [0, 1]]))
    middle = np.array([width / 2, height / 2])
    offset = middle - inverse @ middle
    return (*inverse[0], offset[0], *inverse[1], offset[1])


def _grey(mask: npt.NDArray[np.bool_]) -> Image.Image:
    return Image.fromarray(mask.astype(np.uint8) * 255)


def _geometry(
    image: Image.Image,
    flip: bool,
    turn: tuple[float, ...] | None,
    resampling: Image.Resampling,
    fill: int | tuple[int, int, int],
) -> Image.Image:
    image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image
    return (
        image
        if turn is None
        else image.transform(image.size, Image.Transform.AFFINE, turn, resampling, fillcolor=fill)
    )


_Colours = list[tuple[Callable[[Image.Image], ImageEnhance._Enhance], float]]


def _jitter(rng: np.random.Generator, ranges: tuple[float, float, float]) -> _Colours:
    """Brightness, contrast and saturation in any order, with factors around 1."""
    kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    return [
        (kinds[i], float(rng.uniform(1 - ranges[i], 1 + ranges[i]))) for i in rng.permutation(3)
    ]


def _recoloured(image: Image.Image, colours: _Colours, grey: bool) -> Image.Image:
    for kind, factor in colours:
        image = image if factor == 1.0 else kind(image).enhance(factor)
    return image.convert("L").convert("RGB") if grey else image


def _mosaic(
    rng: np.random.Generator, images: list[Image.Image], masks: list[list[Image.Image]]
) -> tuple[list[Image.Image], list[list[Image.Image]]]:
    """Four small copies, each flipped or not; the objects of one of them are meant."""
    size = images[0].size[0]
    edges, meant, flips = (0, size // 2, size), int(rng.integers(4)), rng.random(4) < 0.5

    def tile(image: Image.Image, number: int) -> tuple[Image.Image, tuple[int, int]]:
        left, top = edges[number % 2], edges[number // 2]
        small = image.resize(
            (edges[number % 2 + 1] - left, edges[number // 2 + 1] - top), Image.Resampling.BILINEAR
        )
        return (small.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flips[number] else small), (
            left,
            top,
        )

    def pasted(image: Image.Image, numbers: Sequence[int]) -> Image.Image:
        whole = Image.new(image.mode, image.size)
        for number in numbers:
            whole.paste(*tile(image, number))
        return whole

    return [pasted(image, range(4)) for image in images], [
        [pasted(mask, [meant]) for mask in frame] for frame in masks
    ]
