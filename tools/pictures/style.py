"""Colours of light and dark pages, and the few shapes that the diagrams consist of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "assets"
SETTINGS = {"svg.hashsalt": "sam2_fast", "svg.fonttype": "none", "font.family": "sans-serif"}


@dataclass(frozen=True)
class Theme:
    """Colours of one kind of page."""

    name: str
    text: str
    muted: str
    line: str
    compute: str
    memory: str
    data: str


LIGHT = Theme("light", "#1f2328", "#59636e", "#818b98", "#b7e4dc", "#ffdfb6", "#e4e8ee")
DARK = Theme("dark", "#e6edf3", "#9198a1", "#767d86", "#0f5e54", "#7a4a12", "#343b44")
THEMES = (LIGHT, DARK)


@contextmanager
def drawing(name: str, theme: Theme, width: float, height: float) -> Iterator[Axes]:
    """Axes of `width` x `height` units without ticks, saved as `docs/assets/<name>-<theme>.svg`."""
    with matplotlib.rc_context(SETTINGS):
        figure, axes = plt.subplots(figsize=(width / 10, height / 10))
        figure.subplots_adjust(left=0, right=1, bottom=0, top=1)
        axes.set_xlim(0, width)
        axes.set_ylim(0, height)
        axes.axis("off")
        yield axes
        path = FOLDER / f"{name}-{theme.name}.svg"
        figure.savefig(path, transparent=True, metadata={"Date": None, "Creator": None})
        plt.close(figure)


def box(
    axes: Axes,
    theme: Theme,
    corner: tuple[float, float],
    size: tuple[float, float],
    text: str,
    kind: str = "compute",
    detail: str = "",
) -> None:
    """A rounded box. kind: "compute", "memory" or "data". detail: a second, smaller line."""
    x, y = corner
    width, height = size
    colour = getattr(theme, kind)
    style = "round,pad=0,rounding_size=0.9"
    patch = FancyBboxPatch(corner, width, height, style, facecolor=colour, edgecolor=theme.line)
    axes.add_patch(patch)
    middle = y + height / 2
    if detail:
        label(axes, theme, (x + width / 2, middle + 1.2), text, weight="bold")
        label(axes, theme, (x + width / 2, middle - 1.4), detail, size=7.5, muted=True)
    else:
        label(axes, theme, (x + width / 2, middle), text, weight="bold")


def label(
    axes: Axes,
    theme: Theme,
    position: tuple[float, float],
    text: str,
    size: float = 9.0,
    muted: bool = False,
    weight: str = "normal",
    align: str = "center",
) -> None:
    """Text around a position."""
    colour = theme.muted if muted else theme.text
    axes.text(
        *position, text, ha=align, va="center", fontsize=size, color=colour, fontweight=weight
    )


def arrow(
    axes: Axes,
    theme: Theme,
    start: tuple[float, float],
    end: tuple[float, float],
    bend: float = 0.0,
) -> None:
    """An arrow; bend: curvature, 0 is straight."""
    patch = FancyArrowPatch(
        start,
        end,
        arrowstyle="-|>",
        mutation_scale=9,
        color=theme.line,
        linewidth=1.2,
        connectionstyle=f"arc3,rad={bend}",
        shrinkA=0,
        shrinkB=0,
    )
    axes.add_patch(patch)


def elbow(axes: Axes, theme: Theme, points: list[tuple[float, float]]) -> None:
    """An arrow along straight lines through `points`."""
    xs, ys = zip(*points[:-1], strict=True)
    axes.plot(xs, ys, color=theme.line, linewidth=1.2, solid_joinstyle="round")
    arrow(axes, theme, points[-2], points[-1])


def cell(
    axes: Axes,
    theme: Theme,
    corner: tuple[float, float],
    size: tuple[float, float],
    colour: str,
    line_width: float = 0.6,
) -> None:
    """A rectangle of a grid."""
    patch = Rectangle(corner, *size, facecolor=colour, edgecolor=theme.line, linewidth=line_width)
    axes.add_patch(patch)
