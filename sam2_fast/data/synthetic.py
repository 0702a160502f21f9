"""Synthetic videos: textured objects that move, rotate, grow, deform, cover each other and vanish.

Every frame is a function of (seed, frame number). A video can have any length, frames can be
rendered in any order, and masks are exact. Objects may leave and come back, and some look alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sam2_fast.data.motion import Path, Pose, happens
from sam2_fast.data.shapes import Shape, Texture

Image = npt.NDArray[np.uint8]
ABSENT, CUT = 1, 2  # kinds of events


@dataclass(frozen=True)
class World:
    """Settings of a video. Sizes are fractions of the image's shorter side, times are in frames."""

    height: int = 256
    width: int = 256
    objects: tuple[int, int] = (2, 6)  # least and greatest number
    size: tuple[float, float] = (0.08, 0.3)  # range of radii
    speed: float = 1.0  # 1: across the image in about 30 frames
    deformation: float = 1.0  # factor of the waves along an outline; 0: rigid objects
    variety: float = 1.0  # difference between the two colours of a surface, 0 to 1
    look_alikes: float = 0.3  # probability that an object copies another, with a different path
    absences: float = 0.15  # probability that an object is absent for a period
    absence: int = 12  # frames of such a period
    cuts: float = 0.0  # probability that a period begins with a cut: new background, new paths
    scene: int = 40  # frames of such a period
    noise: float = 4.0  # standard deviation for each pixel, which has values 0 to 255
    backgrounds: Sequence[Image] = ()  # photographs [H, W, 3]; without any, textures

    def __post_init__(self) -> None:
        if not 1 <= self.objects[0] <= self.objects[1] <= 254:
            raise ValueError(f"objects: expected (least, most) within 1 to 254, got {self.objects}")
        if min(self.height, self.width) < 16:
            raise ValueError(
                f"height, width: expected 16 pixels or more, got {self.height} x {self.width}"
            )
        if self.deformation < 0 or not 0 <= self.variety <= 1:
            raise ValueError(
                f"deformation, variety: expected 0 or more and 0 to 1, got {self.deformation} and "
                f"{self.variety}"
            )
        if min(self.absence, self.scene) < 1 or self.speed <= 0:
            raise ValueError(
                f"absence, scene, speed: expected positive numbers, got {self.absence}, "
                f"{self.scene}, {self.speed}"
            )


class Frame(NamedTuple):
    """One picture and the visible object of each pixel."""

    image: Image  # [H, W, 3] uint8
    labels: npt.NDArray[np.uint8]  # [H, W]: the object that is visible, 0 background

    def masks(self) -> dict[int, npt.NDArray[np.bool_]]:
        """Masks [H, W] of the visible objects."""
        return {int(i): self.labels == i for i in np.unique(self.labels) if i}


@dataclass(frozen=True)
class _Object:
    shape: Shape
    texture: Texture
    size: tuple[float, float]


class SyntheticVideo(Sequence[Frame]):
    """`length` frames of a world, drawn from `seed`.

    The same arguments give the same pixels on any machine with the same NumPy.
    """

    def __init__(self, seed: int, length: int, world: World | None = None) -> None:
        if length < 1:
            raise ValueError(f"length: expected 1 frame or more, got {length}")
        self.seed = seed
        self.length = length
        self.world = world or World()
        rng = np.random.default_rng([seed, 0])
        objects: list[_Object] = []
        for _ in range(int(rng.integers(self.world.objects[0], self.world.objects[1] + 1))):
            if objects and rng.random() < self.world.look_alikes:
                objects.append(objects[int(rng.integers(len(objects)))])
            else:
                radius = float(rng.uniform(*self.world.size))
                objects.append(
                    _Object(
                        Shape.random(rng, self.world.deformation),
                        Texture.random(rng, 1.5, self.world.variety),
                        (0.9 * radius, 1.1 * radius),
                    )
                )
        self._objects = objects
        self._scene = lru_cache(maxsize=4)(self._make_scene)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, t: int) -> Frame:  # type: ignore[override]
        if not -self.length <= t < self.length:
            raise IndexError(f"frame {t} is out of range, the video has {self.length} frames")
        return self._render(t % self.length)

    def __iter__(self) -> Iterator[Frame]:
        return (self._render(t) for t in range(self.length))

    def images(self) -> Sequence[Image]:
        """The pictures without labels, rendered on demand; accepted by `init_state`."""
        return _Images(self)

    def ids(self) -> range:
        """Numbers of the objects, the farthest first: a later object covers an earlier one."""
        return range(1, len(self._objects) + 1)

    def present(self, number: int, t: int) -> bool:
        """Whether the object exists on frame t; it may be covered, or outside the image."""
        return not happens(
            self.seed * 1000 + number, ABSENT, t, self.world.absence, self.world.absences
        )

    def scene(self, t: int) -> int:
        """Number of cuts up to and including frame t."""
        periods = range(1, t // self.world.scene + 1)
        return sum(
            happens(self.seed, CUT, s * self.world.scene, self.world.scene, self.world.cuts)
            for s in periods
        )

    def _make_scene(self, number: int) -> tuple[list[Path], npt.NDArray[np.float32]]:
        rng = np.random.default_rng([self.seed, 1, number])
        paths = [Path.random(rng, self.world.speed, item.size) for item in self._objects]
        return paths, self._background(rng)

    def _background(self, rng: np.random.Generator) -> npt.NDArray[np.float32]:
        height, width = self.world.height, self.world.width
        if not len(self.world.backgrounds):
            y, x = np.mgrid[0:height, 0:width].astype(np.float32) / np.float32(
                min(height, width) / 2
            )
            return Texture.random(rng, 1.0, self.world.variety).colour(x, y)
        photo = self.world.backgrounds[int(rng.integers(len(self.world.backgrounds)))]
        # A random part of the photograph, from its top left corner.
        rows, columns = (np.linspace(0, 1, size) * rng.uniform(0.5, 1) for size in (height, width))
        return np.asarray(
            photo[(rows * (photo.shape[0] - 1)).astype(int)][
                :, (columns * (photo.shape[1] - 1)).astype(int)
            ],
            np.float32,
        )

    def _render(self, t: int) -> Frame:
        paths, background = self._scene(self.scene(t))
        height, width = self.world.height, self.world.width
        image = background.copy()
        labels = np.zeros((height, width), dtype=np.uint8)
        for number, (item, path) in enumerate(zip(self._objects, paths, strict=True), start=1):
            if self.present(number, t):
                _draw(item, path.at(t, height, width), t, number, image, labels)
        if self.world.noise:
            image += (
                np.random.default_rng([self.seed, 2, t])
                .normal(0, self.world.noise, image.shape)
                .astype(np.float32)
            )
        return Frame(np.clip(image, 0, 255).astype(np.uint8), labels)


class _Images(Sequence[Image]):
    def __init__(self, video: SyntheticVideo) -> None:
        self._video = video

    def __len__(self) -> int:
        return len(self._video)

    def __getitem__(self, t: int) -> Image:  # type: ignore[override]
        return self._video[t].image


def _draw(
    item: _Object,
    pose: Pose,
    t: int,
    number: int,
    image: npt.NDArray[np.float32],
    labels: npt.NDArray[np.uint8],
) -> None:
    """Draw an object over `image` and `labels`, in the square that contains it."""
    reach = 1.5 * pose.radius
    top, left = max(int(pose.y - reach), 0), max(int(pose.x - reach), 0)
    bottom = min(int(pose.y + reach) + 1, labels.shape[0])
    right = min(int(pose.x + reach) + 1, labels.shape[1])
    if top >= bottom or left >= right:
        return
    y, x = np.mgrid[top:bottom, left:right].astype(np.float32)
    across, down = (x - pose.x) / pose.radius, (y - pose.y) / pose.radius
    cos = np.float32(np.cos(pose.angle))
    sin = np.float32(np.sin(pose.angle))
    u, v = cos * across + sin * down, cos * down - sin * across
    covered = item.shape.contains(u, v, t)
    image[top:bottom, left:right][covered] = item.texture.colour(u[covered], v[covered])
    labels[top:bottom, left:right][covered] = number
