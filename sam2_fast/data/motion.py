"""How synthetic objects move: smooth functions of the frame number.

Any frame can be computed at once, without the frames before it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

TAU = 2 * np.pi


@dataclass(frozen=True)
class Wander:
    """A number that varies smoothly around a mean: a sum of slow sines."""

    mean: float
    waves: npt.NDArray[np.float64]  # [count, 3]: amplitude, cycles per frame, phase

    @classmethod
    def random(
        cls, rng: np.random.Generator, mean: float, amplitude: float, slowest: float, fastest: float
    ) -> Wander:
        """A random value with this mean.

        amplitude: approximate amplitude of the sum.
        slowest, fastest: longest and shortest cycle in frames.
        """
        count = 3
        waves = np.stack(
            [
                rng.uniform(0.3, 1.0, count),
                1 / rng.uniform(fastest, slowest, count),
                rng.uniform(0, TAU, count),
            ],
            axis=1,
        )
        waves[:, 0] *= amplitude / waves[:, 0].sum()
        return cls(mean, waves)

    def at(self, t: float) -> float:
        """The value on frame t."""
        return float(
            self.mean
            + (self.waves[:, 0] * np.sin(TAU * self.waves[:, 1] * t + self.waves[:, 2])).sum()
        )


@dataclass(frozen=True)
class Pose:
    """The position of an object on one frame: centre and radius in pixels, angle in radians."""

    x: float
    y: float
    radius: float
    angle: float


@dataclass(frozen=True)
class Path:
    """The pose of an object on every frame, in units of the image's size."""

    x: Wander
    y: Wander
    size: Wander
    angle: Wander
    spin: float

    @classmethod
    def random(cls, rng: np.random.Generator, speed: float, size: tuple[float, float]) -> Path:
        """A random path, which may leave the image.

        speed: 1 crosses the image in about 30 frames.
        size: range of the radius.
        """
        slow, fast = 240 / speed, 60 / speed
        radius = float(rng.uniform(*size))
        return cls(
            Wander.random(
                rng, float(rng.uniform(0.25, 0.75)), float(rng.uniform(0.2, 0.9)), slow, fast
            ),
            Wander.random(
                rng, float(rng.uniform(0.25, 0.75)), float(rng.uniform(0.2, 0.9)), slow, fast
            ),
            Wander.random(rng, radius, 0.25 * radius, slow, fast),
            Wander.random(rng, float(rng.uniform(0, TAU)), float(rng.uniform(0, 1.5)), slow, fast),
            float(rng.normal(0, 0.02)) * speed,
        )

    def at(self, t: float, height: int, width: int) -> Pose:
        """The pose on frame t of an image of height x width pixels."""
        side = min(height, width)
        return Pose(
            self.x.at(t) * width,
            self.y.at(t) * height,
            max(self.size.at(t) * side, 1.0),
            self.angle.at(t) + self.spin * t,
        )


def happens(seed: int, kind: int, t: int, length: int, probability: float) -> bool:
    """Whether an event holds on frame t. It is drawn anew for every period of `length` frames.

    It never holds during the first period.
    """
    period = t // length
    return period > 0 and bool(np.random.default_rng([seed, kind, period]).random() < probability)
