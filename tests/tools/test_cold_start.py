"""The forecast of a cold start: its arithmetic, and what the committed table promises."""

from __future__ import annotations

import json

import pytest

from tools import cold_start

MOST_SECONDS = 10
"""From import to the first mask, compilation and import together."""


@pytest.mark.parametrize(
    ("total", "ir", "processors", "expected"), [(10, 2, 1, 10), (10, 2, 4, 4), (10, 10, 4, 10)]
)
def test_only_ir_waits_for_python(
    total: float, ir: float, processors: int, expected: float
) -> None:
    assert cold_start.forecast(total, ir, processors) == expected


def test_the_committed_table_is_consistent_and_keeps_the_bar() -> None:
    table = json.loads(cold_start.TABLE.read_text())
    assert set(table["rows"]) == {f"{m} {k}" for m in ("tiny", "large") for k in cold_start.KINDS}
    for name, row in table["rows"].items():
        assert sum(row["specialisations"].values()) == row["kernels"], name
        seconds = cold_start.forecast(row["cpu_s"], row["ir_s"], table["processors"])
        assert seconds == pytest.approx(row["forecast_s"], abs=0.11), name
        assert table["import_cpu_s"] + row["forecast_s"] <= MOST_SECONDS, name
