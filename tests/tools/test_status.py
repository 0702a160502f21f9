"""The status page is generated from the registry, the marks of tests and the results."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from sam2_fast.ops.core.registry import backends
from tools import op_names, status


def test_the_committed_page_is_the_generated_one() -> None:
    assert status.PAGE.read_text() == status.page(), "run `make generated`"


def test_the_committed_list_of_ops_for_type_checkers_is_the_generated_one() -> None:
    assert op_names.FILE.read_text() == op_names.source(), "run `make generated`"


@pytest.mark.parametrize(
    "page",
    sorted({*status.ROOT.glob("*.md"), *(status.ROOT / "docs").rglob("*.md")}),
    ids=lambda p: p.stem,
)
def test_no_other_page_states_what_has_not_run_on_a_gpu(page: Path) -> None:
    text = " ".join(page.read_text().split())
    statement = re.search(r"(never|not|nothing|none).{0,60}run on a GPU", text, re.IGNORECASE)
    assert page == status.PAGE or not statement


def test_every_backend_has_a_row_and_a_proof() -> None:
    rows = status.rows()
    assert set(rows) == {(s.op, s.backend) for s in backends() if s.backend != "torch"}
    for (op, backend), row in rows.items():
        proof = {"cpu": "reference", "triton": "interpreted", "cuda": "gpu test"}[backend]
        assert proof in row.proofs, f"{op} {backend}: no test is marked as proving it ({proof})"


def test_correct_and_wrong_results_of_a_card_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    records = [
        {"step": "run", "item": "command", "date": "2027-01-02 03:04:05 UTC"},
        {"step": "setup", "item": "card", "card": "Some GPU", "capability": "9.0"},
        {"step": "ops", "item": "tiny nms 48x4 triton", "equal": True, "status": "ok"},
        {"step": "ops", "item": "tiny hiera_block 1x64x64x384 triton", "status": "ok"},
        {
            "step": "ops",
            "item": "large hiera_block 1x32x32x1152 triton",
            "status": "WRONG: error above twice torch's",
        },
    ]
    (results / "first_light_some_gpu.jsonl").write_text("\n".join(map(json.dumps, records)))
    monkeypatch.setattr(status, "ROOT", tmp_path)
    cards = status.gpu_runs()
    assert cards["nms", "triton"] == "Some GPU, 2027-01-02"
    assert cards["hiera_block", "triton"].startswith("Some GPU, 2027-01-02: WRONG")


def test_a_mark_of_an_unknown_op_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        status, "marked_proofs", lambda: [(("no_such_op", "triton"), "interpreted")]
    )
    with pytest.raises(ValueError, match="no_such_op:triton"):
        status.rows()
