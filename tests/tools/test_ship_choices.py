"""Choices that the package ships come from reports of the doctor, and say so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sam2_fast.proving.shipped import shipped
from sam2_fast.proving.store import CorruptError
from tools.ship_choices import main

CARD = {
    "name": "Test Card 1",
    "capability": 90,
    "driver": "575.1",
    "torch": "2.13",
    "triton": "3.8",
    "package": "0.1.0",
    "build": "abc",
}
CHOICE = {
    "point": "linear",
    "key": [4096, 256, 2],
    "form": [128, 64, 4],
    "source": "measured",
    "milliseconds": 0.1,
    "default_milliseconds": 0.2,
    "op": "hiera_block",
    "date": "2030-01-01",
}


def report(tmp_path: Path, **changed: Any) -> Path:
    facts = {
        "card": CARD,
        "failed": 0,
        "matrix_gflops": 500000,
        "date": "2030-01-01",
        "choices": [CHOICE],
    }
    path = tmp_path / "report.json"
    path.write_text(json.dumps({**facts, **changed}))
    return path


@pytest.mark.parametrize("capability", [80, 89, 90, 120])
def test_the_package_has_a_file_for_each_architecture_and_each_entry_says_its_source(
    capability: int,
) -> None:
    from sam2_fast.proving.shipped import path_of

    found = json.loads(path_of(capability).read_text())
    assert found["capability"] == capability
    if not found["choices"]:
        assert found["card"] is None and "Nothing has been measured" in found["note"]
    for choice in shipped(capability).values():
        assert choice.source in ("measured", "forecast") and choice.date
        assert choice.source == "forecast" or found["card"]["name"]


def test_a_report_becomes_the_file_of_its_architecture(tmp_path: Path) -> None:
    assert main([str(report(tmp_path)), "--into", str(tmp_path / "made")]) == 0
    found = shipped(90, tmp_path / "made")
    assert list(found) == [("linear", (4096, 256, 2))]
    choice = found["linear", (4096, 256, 2)]
    assert choice.form == (128, 64, 4) and choice.source == "measured"
    assert json.loads((tmp_path / "made" / "sm_90.json").read_text())["card"]["driver"] == "575.1"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"card": {**CARD, "capability": None}}, "of a CPU"),
        ({"failed": 2}, "2 kernels failed"),
        ({"matrix_gflops": None}, "no times"),
    ],
)
def test_reports_that_prove_nothing_are_refused(
    tmp_path: Path, changed: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(report(tmp_path, **changed)), "--into", str(tmp_path / "made")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "made").exists()


def test_architectures_without_a_file_and_cpus_have_no_choices(tmp_path: Path) -> None:
    assert shipped(75, tmp_path) == {} and shipped(None) == {}


@pytest.mark.parametrize("text", ["{}", "no", '{"format": "sam2_fast.choices", "version": 2}'])
def test_a_file_that_is_none_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "sm_90.json").write_text(text)
    with pytest.raises(CorruptError):
        shipped(90, tmp_path)
