"""The chart of README.md: times of the official package over those of this library."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.pictures.style import Theme, drawing, label

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"


@dataclass(frozen=True)
class Source:
    """A bar: its text, and the row of a result file that it comes from."""

    text: str
    file: str
    case: str


SOURCES = (
    Source("image encoder, float32", "cpu_predictors_1024", "tiny 1024, image encoder"),
    Source("image encoder, bfloat16", "cpu_predictors_1024", "tiny 1024, image encoder, bfloat16"),
    Source("tracked frame, float32", "cpu_predictors_1024", "tiny 1024, frame, 1 objects"),
    Source(
        "tracked frame, bfloat16", "cpu_predictors_1024", "tiny 1024, frame, 1 objects, bfloat16"
    ),
)


@dataclass(frozen=True)
class Bar:
    """Medians in milliseconds of the two programs."""

    text: str
    ours_ms: float
    official_ms: float

    @property
    def ratio(self) -> float:
        """How many times as long the official package takes."""
        return self.official_ms / self.ours_ms

    def caption(self) -> str:
        """What stands beside the bar."""
        return f"{self.ratio:.1f}x ({self.ours_ms:,.0f} ms; official {self.official_ms:,.0f} ms)"


def document(file: str) -> dict[str, Any]:
    """A committed result file."""
    content: dict[str, Any] = json.loads((RESULTS / f"{file}.json").read_text())
    return content


def bars() -> list[Bar]:
    """The bars in the order of the chart."""
    return [Bar(source.text, *medians(source)) for source in SOURCES]


def medians(source: Source) -> tuple[float, float]:
    """Milliseconds of this library and of the official package."""
    times = {
        row["who"]: row["median_ms"]
        for rows in document(source.file)["results"].values()
        for row in rows
        if row["case"] == source.case
    }
    return times["sam2_fast"], times["official"]


def machine_text() -> str:
    """The processor of the results, for below the chart."""
    machine = document(SOURCES[0].file)["machine"]
    processor = machine.get("processor", {})
    name = processor.get("architecture") or machine.get("cpu", "")
    return f"tiny model, 1024 x 1024 pixels, {machine['threads']} cores of a {name} processor"


def speed(theme: Theme) -> None:
    """A horizontal bar for each source."""
    drawn = bars()
    height = 5 * len(drawn) + 10
    longest = max(bar.ratio for bar in drawn)
    with drawing("speed", theme, 96, height) as axes:
        label(
            axes,
            theme,
            (1, height - 2.5),
            "Time of the official package / time of sam2_fast",
            10,
            weight="bold",
            align="left",
        )
        for index, bar in enumerate(drawn):
            y = height - 9 - 5 * index
            length = 34 * bar.ratio / longest
            axes.barh(y, length, left=25, height=3.2, color=theme.compute, edgecolor=theme.line)
            label(axes, theme, (24, y), bar.text, align="right")
            label(axes, theme, (26 + length, y), bar.caption(), 8.5, align="left")
        one = 25 + 34 / longest
        axes.plot([one, one], [3.5, height - 5.5], color=theme.line, linestyle=":", linewidth=1.2)
        label(axes, theme, (one, 1.8), "1x: official", 7.5, True)
        label(axes, theme, (95, 1.8), machine_text(), 7.5, True, align="right")
