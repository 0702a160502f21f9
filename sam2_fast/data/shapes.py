"""Outlines and surfaces of synthetic objects, as functions of a point (u, v) on the object.

In these coordinates a shape moves, rotates and grows with its object.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
TAU = 2 * np.pi


@dataclass(frozen=True)
class Shape:
    """An outline around the origin with a radius of about 1 at most.

    The radius by angle is a base curve times travelling waves, which deform the shape.
    """

    kind: str
    corners: int  # corners of a polygon, or points of a star
    depth: float  # depth of the dents of a star or flower
    aspect: float  # height over width
    # Number of waves along the outline, amplitude, phase, cycles per frame.
    waves: tuple[tuple[int, float, float, float], ...]
    hole: float  # radius of the hole of a ring, else 0
    bite: float  # offset of the disk that is cut out of a crescent, else 0

    @classmethod
    def random(cls, rng: np.random.Generator, deformation: float = 1.0) -> Shape:
        """A shape of a random kind. deformation: factor of the waves along the outline."""
        kind = str(rng.choice(["blob", "polygon", "star", "flower", "ring", "crescent"]))
        waves = tuple(
            (
                int(rng.integers(2, 6)),
                deformation * float(rng.uniform(0.0, 0.12)),
                float(rng.uniform(0, TAU)),
                float(rng.normal(0, 0.02)),
            )
            for _ in range(3)
        )
        return cls(
            kind,
            int(rng.integers(3, 8)),
            float(rng.uniform(0.2, 0.5)),
            float(rng.uniform(0.5, 1.0)),
            waves,
            float(rng.uniform(0.3, 0.55)) if kind == "ring" else 0.0,
            float(rng.uniform(0.4, 0.8)) if kind == "crescent" else 0.0,
        )

    def contains(self, u: Array, v: Array, t: float) -> npt.NDArray[np.bool_]:
        """Which points (u, v) belong to the object on frame t."""
        v = np.asarray(v / self.aspect, dtype=np.float32)
        distance, angle = np.hypot(u, v), np.arctan2(v, u)
        limit = self._radius(angle)
        for number, amplitude, phase, cycles in self.waves:
            limit = limit * np.asarray(
                1 + amplitude * np.sin(number * angle + phase + TAU * cycles * t), dtype=np.float32
            )
        covered = distance <= limit
        if self.hole:
            covered &= distance >= self.hole
        if self.bite:
            covered &= np.hypot(u - self.bite, v) >= 0.75
        return covered

    def _radius(self, angle: Array) -> Array:
        if self.kind == "polygon":
            part = TAU / self.corners
            return np.asarray(
                np.cos(part / 2) / np.cos(np.mod(angle, part) - part / 2), dtype=np.float32
            )
        if self.kind == "star":
            saw = np.abs(np.mod(angle * self.corners / TAU, 1) * 2 - 1)
            return np.asarray(1 - self.depth * (1 - saw), dtype=np.float32)
        if self.kind == "flower":
            return np.asarray(
                1 - self.depth * 0.5 * (1 + np.sin(self.corners * angle)), dtype=np.float32
            )
        return np.ones_like(angle)


@dataclass(frozen=True)
class Texture:
    """Colours of a surface: two colours mixed by a pattern, with fine grain on top."""

    kind: str
    colours: Array  # [2, 3], 0 to 255
    waves: Array  # [count, 3]: frequency along u and v, phase
    grain: Array  # waves of the grain, in the same format
    contrast: float

    @classmethod
    def random(cls, rng: np.random.Generator, scale: float = 1.0, variety: float = 1.0) -> Texture:
        """A texture of a random kind.

        scale: factor of the frequencies. variety: difference between the two colours, 0 to 1.
        """
        kind = str(rng.choice(["noise", "stripes", "checks", "dots", "gradient"]))
        colours = rng.uniform(0, 255, (2, 3)).astype(np.float32)
        if variety != 1:
            colours[1] = colours[0] + variety * (colours[1] - colours[0])

        def spectrum(count: int, low: float, high: float) -> Array:
            angle, size = rng.uniform(0, TAU, count), rng.uniform(low, high, count) * scale
            return np.stack(
                [size * np.cos(angle), size * np.sin(angle), rng.uniform(0, TAU, count)], axis=1
            ).astype(np.float32)

        return cls(
            kind, colours, spectrum(4, 1.0, 6.0), spectrum(4, 10.0, 25.0), float(rng.uniform(5, 25))
        )

    def colour(self, u: Array, v: Array) -> Array:
        """Colours [..., 3] at points (u, v)."""
        kinds: dict[str, Callable[[], Array]] = {
            "noise": lambda: np.asarray(self._sum(self.waves, u, v) / 2 + 0.5, dtype=np.float32),
            "stripes": lambda: (self._sum(self.waves[:1], u, v) > 0).astype(np.float32),
            "checks": lambda: (
                (np.sin(self.waves[0, 0] * 2 * u) > 0) ^ (np.sin(self.waves[0, 0] * 2 * v) > 0)
            ).astype(np.float32),
            "dots": lambda: (
                np.sin(self.waves[1, 0] * 3 * u) * np.sin(self.waves[1, 0] * 3 * v) > 0.3
            ).astype(np.float32),
            "gradient": lambda: np.asarray(
                0.5 + 0.5 * (u * np.cos(self.waves[0, 2]) + v * np.sin(self.waves[0, 2])),
                dtype=np.float32,
            ),
        }
        mix = np.clip(kinds[self.kind](), 0, 1)[..., None]
        flat = self.colours[0] + mix * (self.colours[1] - self.colours[0])
        return np.asarray(
            flat + self.contrast * self._sum(self.grain, u, v)[..., None], dtype=np.float32
        )

    @staticmethod
    def _sum(waves: Array, u: Array, v: Array) -> Array:
        total = np.zeros_like(u)
        for across, down, phase in waves:
            total += np.sin(across * u + down * v + phase)
        return np.asarray(total / max(len(waves) ** 0.5, 1), dtype=np.float32)
