"""Choices of the package are generated from reports of the doctor, with their source."""

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


def write_report(tmp_path: Path, **changes: Any) -> Path:
    facts = {"card": CARD, "failed": 0, "matrix_gflops": 500000, "date": "2030-01-01"}
    path = tmp_path / "report.json"
    path.write_text(json.dumps({**facts, "choices": [CHOICE], **changes}))
    return path


@pytest.mark.parametrize("capability", [80, 89, 90, 120])
def test_each_architecture_has_a_file_and_each_entry_has_a_source(capability: int) -> None:
    from sam2_fast.proving.shipped import path_of

    document = json.loads(path_of(capability).read_text())
    assert document["capability"] == capability
    if not document["choices"]:
        assert document["card"] is None and "Nothing has been measured" in document["note"]
    for choice in shipped(capability).values():
        assert choice.source in ("measured", "forecast") and choice.date
        assert choice.source == "forecast" or document["card"]["name"]


def test_a_report_is_converted_to_the_file_of_its_architecture(tmp_path: Path) -> None:
    assert main([str(write_report(tmp_path)), "--into", str(tmp_path / "out")]) == 0
    choices = shipped(90, tmp_path / "out")
    assert list(choices) == [("linear", (4096, 256, 2))]
    choice = choices["linear", (4096, 256, 2)]
    assert choice.form == (128, 64, 4) and choice.source == "measured"
    document = json.loads((tmp_path / "out" / "sm_90.json").read_text())
    assert document["card"]["driver"] == "575.1"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"card": {**CARD, "capability": None}}, "of a CPU"),
        ({"failed": 2}, "2 kernels failed"),
        ({"matrix_gflops": None}, "no times"),
    ],
)
def test_reports_without_usable_measurements_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    report = write_report(tmp_path, **changes)
    assert main([str(report), "--into", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_architectures_without_a_file_and_cpus_have_no_choices(tmp_path: Path) -> None:
    assert shipped(75, tmp_path) == {} and shipped(None) == {}


@pytest.mark.parametrize("text", ["{}", "no", '{"format": "sam2_fast.choices", "version": 2}'])
def test_an_invalid_file_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "sm_90.json").write_text(text)
    with pytest.raises(CorruptError):
        shipped(90, tmp_path)
