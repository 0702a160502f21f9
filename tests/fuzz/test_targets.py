"""Each fuzz target for a second: inputs are accepted and refused, and nothing is reported."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("pycocotools")

from tests.fuzz.loop import Result, Runner, run_seeded
from tests.fuzz.targets import TARGETS

SECONDS = 1.0
EXECUTIONS = 300
NEVER_REFUSED = ("mp4_header",)


@pytest.mark.reliability("F15", "F19", "32", "38")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TARGETS)
def test_a_reader_accepts_or_raises_what_it_documents(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    target = TARGETS[name]
    runner = Runner(target, tmp_path, tmp_path / "findings")
    seeds = len(target.seeds())
    started = time.monotonic()

    def proceed(result: Result) -> bool:
        few = result.executions < seeds + 12
        return few or (result.executions < EXECUTIONS and time.monotonic() - started < SECONDS)

    run_seeded(target, runner, 0, proceed)
    result = runner.result
    assert result.findings == []
    assert result.accepted > 0 and (result.accepted < result.executions or name in NEVER_REFUSED)


def test_an_error_that_is_not_documented_is_a_finding(tmp_path: Path) -> None:
    def reader(path: Path) -> None:
        if b"1" in path.read_bytes():
            raise KeyError("missing")

    target = replace(TARGETS["groups"], run=reader, seeds=lambda: [b"0", b"1", b"11"])
    runner = Runner(target, tmp_path, tmp_path / "findings")
    run_seeded(target, runner, 0, lambda result: False)
    assert (runner.result.executions, runner.result.accepted) == (3, 1)
    assert len(runner.result.findings) == 1 and "KeyError" in runner.result.findings[0]
    assert (tmp_path / "findings" / "1").read_bytes() == b"1"
