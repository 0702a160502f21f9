"""Rows are on disk as soon as they are known, and a bad case does not affect the others."""

from __future__ import annotations

import ast
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import run, video
from benchmarks.timing import Case, Options, Row, require

ROOT = Path(__file__).resolve().parents[2]
ENDLESS = """
import sys, time, types
from benchmarks import run
from benchmarks.timing import Case, Row


def rows(case, forever):
    yield Row(case, "sam2_fast", 1.0, 1.0, 1.0, {})
    if forever:
        time.sleep(100)


def measure(options):
    yield Case("first", rows, (False,))
    yield Case("second", rows, (True,))
    yield Case("third", rows, (False,))


sys.modules["benchmarks.endless"] = types.SimpleNamespace(measure=measure)
run.available = lambda: ["endless"]
sys.exit(run.main())
"""


def good(case: str, who: str = "sam2_fast") -> Iterator[Row]:
    yield Row(case, who, 1.0, 1.0, 1.0, {})


def red(case: str) -> Iterator[Row]:
    yield from good(case)
    require(False, case, "sam2_fast")
    yield from good(case, "not reached")


def broken(case: str, error: BaseException) -> Iterator[Row]:
    raise error
    yield


Run = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run benchmarks given by name; returns the exit status and the document."""

    def go(**benchmarks: Callable[[Options], Iterator[Case]]) -> tuple[int, dict[str, Any]]:
        for name, measure in benchmarks.items():
            monkeypatch.setitem(sys.modules, f"benchmarks.{name}", SimpleNamespace(measure=measure))
        monkeypatch.setattr(run, "available", lambda: list(benchmarks))
        path = tmp_path / "folder" / "results.json"
        monkeypatch.setattr(sys, "argv", ["run", "--device", "cpu", "--json", str(path)])
        monkeypatch.setattr("benchmarks.report.matrix_peaks", lambda options: {"float32": 100.0})
        status = run.main()
        assert [p.name for p in path.parent.iterdir()] == ["results.json"]
        return status, json.loads(path.read_text())

    return go


def kept(document: dict[str, Any]) -> dict[str, list[str]]:
    return {name: [row["case"] for row in rows] for name, rows in document["results"].items()}


def test_a_killed_run_leaves_a_valid_document_with_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    command = [sys.executable, "-c", ENDLESS, "--device", "cpu", "--json", str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()  # the line about the machine
        printed = [process.stdout.readline().split()[0] for _ in range(2)]  # not kept in a buffer
        process.send_signal(signal.SIGKILL)
    assert printed == ["first", "second"]
    document = json.loads(path.read_text())
    assert document["complete"] is False
    assert kept(document) == {"endless": ["first", "second"]}


def test_a_whole_run_is_complete(ran: Run, capsys: pytest.CaptureFixture[str]) -> None:
    status, document = ran(one=lambda options: iter([Case("a", good), Case("b", good, ("torch",))]))
    assert status == 0
    assert document["complete"] is True
    assert (document["red"], document["failed"]) == ([], [])
    assert kept(document) == {"one": ["a", "b"]}
    headline, *lines = capsys.readouterr().out.splitlines()
    assert headline.endswith("matrix product, GFLOP/s: float32 100")
    assert [line.split()[:2] for line in lines] == [
        ["a", "sam2_fast"],
        ["b", "torch"],
    ]


def test_a_red_case_leaves_the_others(ran: Run, capsys: pytest.CaptureFixture[str]) -> None:
    status, document = ran(
        one=lambda options: iter([Case("a", good), Case("b", red), Case("c", good)]),
        two=lambda options: iter([Case("d", good)]),
    )
    assert status == 1
    assert document["complete"] is True
    assert kept(document) == {"one": ["a", "b", "c"], "two": ["d"]}
    (entry,) = document["red"]
    assert (entry["benchmark"], entry["case"]) == ("one", "b")
    assert "b: sam2_fast differs" in entry["message"]
    printed = capsys.readouterr()
    assert "red: one: b" in printed.out
    assert "red: one: b" in printed.err


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("no kernel image"),
        subprocess.CalledProcessError(1, ["python"], stderr="the reason"),
    ],
)
def test_a_case_that_fails_leaves_the_others(ran: Run, error: BaseException) -> None:
    status, document = ran(one=lambda options: iter([Case("a", broken, (error,)), Case("b", good)]))
    assert status == 1
    assert kept(document) == {"one": ["b"]}
    (entry,) = document["failed"]
    assert entry["case"] == "a"
    assert type(error).__name__ in entry["message"]
    assert (getattr(error, "stderr", None) or "") in entry["message"]


def test_errors_of_triton_are_failures_too(ran: Run) -> None:
    errors = pytest.importorskip("triton.errors")
    status, document = ran(
        one=lambda options: iter([Case("a", broken, (errors.TritonError("no"),)), Case("b", good)])
    )
    assert status == 1
    assert kept(document) == {"one": ["b"]}


def test_a_benchmark_that_ends_early_keeps_its_rows_and_leaves_the_others(ran: Run) -> None:
    def ends(options: Options) -> Iterator[Case]:
        yield Case("a", good)
        raise OSError("no such picture")

    status, document = ran(one=ends, two=lambda options: iter([Case("b", good)]))
    assert status == 1
    assert kept(document) == {"one": ["a"], "two": ["b"]}
    assert document["failed"] == [
        {"benchmark": "one", "case": "", "message": "OSError: no such picture"}
    ]


def test_an_error_of_the_program_itself_is_not_hidden(ran: Run, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        ran(one=lambda options: iter([Case("a", good), Case("b", broken, (KeyboardInterrupt(),))]))
    document = json.loads((tmp_path / "folder" / "results.json").read_text())
    assert document["complete"] is False
    assert kept(document) == {"one": ["a"]}


@pytest.mark.parametrize("name", run.available())
def test_what_may_be_red_or_fail_is_in_a_case(name: str) -> None:
    """An error in `measure` itself would end the benchmark."""
    tree = ast.parse((ROOT / "benchmarks" / f"{name}.py").read_text())
    (measure,) = (
        node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "measure"
    )
    called = {ast.unparse(node.func) for node in ast.walk(measure) if isinstance(node, ast.Call)}
    assert "Case" in called
    assert not called & {
        "require",
        "interleaved",
        "rows",
        "build_sam2",
        "build_sam2_video_predictor",
        "peers.official",
    }


@pytest.mark.parametrize(
    "path", sorted((ROOT / "benchmarks" / "results").glob("*.json")), ids=lambda p: p.stem
)
def test_committed_results_are_complete(path: Path) -> None:
    """Results from before `complete` was written do not have it."""
    document = json.loads(path.read_text())
    assert document.get("complete", True)
    assert not document.get("red")
    assert not document.get("failed")
    fields = {"case", "who", "median_ms", "low_ms", "high_ms", "notes"}
    assert all(set(row) == fields for rows in document["results"].values() for row in rows)


def test_a_real_benchmark_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    words = ["run", "nms", "--quick", "--device", "cpu", "--repeats", "1", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", words)
    assert run.main() == 0
    document = json.loads(path.read_text())
    assert document["complete"] is True
    assert "outputs" not in document["machine"]["command"]
    assert {"sam2_fast", "torch"} <= {row["who"] for row in document["results"]["nms"]}
    assert set(document["machine"]["matrix_peak"]) == {"float32", "bfloat16"}
    assert min(document["machine"]["matrix_peak"].values()) > 0


def test_a_cold_start_has_a_kernel_cache_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, list[str]]] = []

    def start(command: list[str], env: dict[str, str], **_: Any) -> SimpleNamespace:
        cache = Path(env["TRITON_CACHE_DIR"])
        seen.append((str(cache), [p.name for p in cache.iterdir()]))
        (cache / "kernel").touch()
        return SimpleNamespace(stdout="1.5\n")

    monkeypatch.setattr(video.subprocess, "run", start)
    monkeypatch.setattr(video, "write_jpegs", lambda pictures: "")
    cases = video.measure(Options(torch.device("cpu"), quick=True))
    rows = [row for case in (next(cases), next(cases)) for row in case.rows()]
    assert [(row.case.rsplit(", ", 1)[1], row.median_ms) for row in rows] == [
        ("empty kernel cache", 1500.0),
        ("warm kernel cache", 1500.0),
    ]
    (first, empty), (second, warm) = seen
    assert first == second
    assert (empty, warm) == ([], ["kernel"])


def test_few_objects_of_every_size_come_before_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "write_jpegs", lambda pictures: "")
    monkeypatch.setattr(video, "matrix_peak", lambda device, dtype: 1.0)
    cases = [case.name for case in video.measure(Options(torch.device("cuda")))][2:]
    assert [name.split()[0] for name in cases[:4]] == list(video.PRESETS)
    objects = [int(name.split()[-2]) for name in cases]
    assert objects == sorted(objects)
    assert set(objects) == {1, 4, 8, 16, 64}
