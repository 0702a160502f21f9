"""The forecast of the time of a cold start: its arithmetic, and the committed table."""

from __future__ import annotations

import json

import pytest

from tools import cold_start

MAX_SECONDS = 10
"""From the import to the first mask, including compilation."""


@pytest.mark.parametrize(
    ("total", "ir", "processors", "expected"), [(10, 2, 1, 10), (10, 2, 4, 4), (10, 10, 4, 10)]
)
def test_only_the_generation_of_ir_is_serial(
    total: float, ir: float, processors: int, expected: float
) -> None:
    assert cold_start.forecast(total, ir, processors) == expected


def test_the_committed_table_is_consistent_and_within_the_limit() -> None:
    table = json.loads(cold_start.TABLE.read_text())
    assert set(table["rows"]) == {f"{m} {k}" for m in ("tiny", "large") for k in cold_start.KINDS}
    for name, row in table["rows"].items():
        assert sum(row["specialisations"].values()) == row["kernels"], name
        seconds = cold_start.forecast(row["cpu_s"], row["ir_s"], table["processors"])
        assert seconds == pytest.approx(row["forecast_s"], abs=0.11), name
        assert table["import_cpu_s"] + row["forecast_s"] <= MAX_SECONDS, name
