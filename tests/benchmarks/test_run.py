"""`benchmarks.run`: rows are written at once, and a case that fails does not affect the others."""

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


def passing_case(case: str, implementation: str = "sam2_fast") -> Iterator[Row]:
    yield Row(case, implementation, 1.0, 1.0, 1.0, {})


def red_case(case: str) -> Iterator[Row]:
    yield from passing_case(case)
    require(False, case, "sam2_fast")
    yield from passing_case(case, "not reached")


def failing_case(case: str, error: BaseException) -> Iterator[Row]:
    raise error
    yield


RunBenchmarks = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def run_benchmarks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> RunBenchmarks:
    """A function that runs benchmarks, passed by name, and returns exit status and document."""

    def run_all(**benchmarks: Callable[[Options], Iterator[Case]]) -> tuple[int, dict[str, Any]]:
        for name, measure in benchmarks.items():
            monkeypatch.setitem(sys.modules, f"benchmarks.{name}", SimpleNamespace(measure=measure))
        monkeypatch.setattr(run, "available", lambda: list(benchmarks))
        path = tmp_path / "folder" / "results.json"
        monkeypatch.setattr(sys, "argv", ["run", "--device", "cpu", "--json", str(path)])
        monkeypatch.setattr("benchmarks.report.matrix_peaks", lambda options: {"float32": 100.0})
        status = run.main()
        assert [p.name for p in path.parent.iterdir()] == ["results.json"]
        return status, json.loads(path.read_text())

    return run_all


def cases_by_benchmark(document: dict[str, Any]) -> dict[str, list[str]]:
    return {name: [row["case"] for row in rows] for name, rows in document["results"].items()}


def test_a_killed_run_leaves_a_valid_document_with_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    command = [sys.executable, "-c", ENDLESS, "--device", "cpu", "--json", str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()  # the line about the machine
        printed = [process.stdout.readline().split()[0] for _ in range(2)]  # lines are flushed
        process.send_signal(signal.SIGKILL)
    assert printed == ["first", "second"]
    document = json.loads(path.read_text())
    assert document["complete"] is False
    assert cases_by_benchmark(document) == {"endless": ["first", "second"]}


def test_a_run_that_finishes_is_marked_complete(
    run_benchmarks: RunBenchmarks, capsys: pytest.CaptureFixture[str]
) -> None:
    status, document = run_benchmarks(
        one=lambda options: iter([Case("a", passing_case), Case("b", passing_case, ("torch",))])
    )
    assert status == 0
    assert document["complete"] is True
    assert (document["red"], document["failed"]) == ([], [])
    assert cases_by_benchmark(document) == {"one": ["a", "b"]}
    headline, *lines = capsys.readouterr().out.splitlines()
    assert headline.endswith("matrix product, GFLOP/s: float32 100")
    assert [line.split()[:2] for line in lines] == [
        ["a", "sam2_fast"],
        ["b", "torch"],
    ]


def test_a_red_case_does_not_stop_the_others(
    run_benchmarks: RunBenchmarks, capsys: pytest.CaptureFixture[str]
) -> None:
    status, document = run_benchmarks(
        one=lambda options: iter(
            [Case("a", passing_case), Case("b", red_case), Case("c", passing_case)]
        ),
        two=lambda options: iter([Case("d", passing_case)]),
    )
    assert status == 1
    assert document["complete"] is True
    assert cases_by_benchmark(document) == {"one": ["a", "b", "c"], "two": ["d"]}
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
def test_a_case_that_raises_does_not_stop_the_others(
    run_benchmarks: RunBenchmarks, error: BaseException
) -> None:
    status, document = run_benchmarks(
        one=lambda options: iter([Case("a", failing_case, (error,)), Case("b", passing_case)])
    )
    assert status == 1
    assert cases_by_benchmark(document) == {"one": ["b"]}
    (entry,) = document["failed"]
    assert entry["case"] == "a"
    assert type(error).__name__ in entry["message"]
    assert (getattr(error, "stderr", None) or "") in entry["message"]


def test_an_error_of_triton_is_a_failed_case(run_benchmarks: RunBenchmarks) -> None:
    errors = pytest.importorskip("triton.errors")
    status, document = run_benchmarks(
        one=lambda options: iter(
            [Case("a", failing_case, (errors.TritonError("no"),)), Case("b", passing_case)]
        )
    )
    assert status == 1
    assert cases_by_benchmark(document) == {"one": ["b"]}


def test_a_benchmark_that_raises_keeps_its_rows_and_does_not_stop_the_others(
    run_benchmarks: RunBenchmarks,
) -> None:
    def raises_after_a_case(options: Options) -> Iterator[Case]:
        yield Case("a", passing_case)
        raise OSError("no such picture")

    status, document = run_benchmarks(
        one=raises_after_a_case, two=lambda options: iter([Case("b", passing_case)])
    )
    assert status == 1
    assert cases_by_benchmark(document) == {"one": ["a"], "two": ["b"]}
    assert document["failed"] == [
        {"benchmark": "one", "case": "", "message": "OSError: no such picture"}
    ]


def test_a_keyboard_interrupt_ends_the_run(run_benchmarks: RunBenchmarks, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_benchmarks(
            one=lambda options: iter(
                [Case("a", passing_case), Case("b", failing_case, (KeyboardInterrupt(),))]
            )
        )
    document = json.loads((tmp_path / "folder" / "results.json").read_text())
    assert document["complete"] is False
    assert cases_by_benchmark(document) == {"one": ["a"]}


@pytest.mark.parametrize("name", run.available())
def test_measure_only_yields_cases(name: str) -> None:
    """An error in `measure` itself, outside a case, would end the benchmark."""
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
    """Old results lack the key `complete`, which was added later."""
    document = json.loads(path.read_text())
    assert document.get("complete", True)
    assert not document.get("red")
    assert not document.get("failed")
    fields = {"case", "who", "median_ms", "low_ms", "high_ms", "notes"}
    assert all(set(row) == fields for rows in document["results"].values() for row in rows)


def test_a_real_benchmark_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    command = ["run", "nms", "--quick", "--device", "cpu", "--repeats", "1", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", command)
    assert run.main() == 0
    document = json.loads(path.read_text())
    assert document["complete"] is True
    assert "outputs" not in document["machine"]["command"]
    assert {"sam2_fast", "torch"} <= {row["who"] for row in document["results"]["nms"]}
    assert set(document["machine"]["matrix_peak"]) == {"float32", "bfloat16"}
    assert min(document["machine"]["matrix_peak"].values()) > 0


def test_a_cold_start_has_its_own_empty_kernel_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    caches: list[tuple[str, list[str]]] = []

    def start(command: list[str], env: dict[str, str], **_: Any) -> SimpleNamespace:
        cache = Path(env["TRITON_CACHE_DIR"])
        caches.append((str(cache), [p.name for p in cache.iterdir()]))
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
    (first_path, first_files), (second_path, second_files) = caches
    assert first_path == second_path
    assert first_files == []
    assert second_files == ["kernel"]


def test_every_model_size_runs_with_few_objects_before_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(video, "write_jpegs", lambda pictures: "")
    monkeypatch.setattr(video, "matrix_peak", lambda device, dtype: 1.0)
    cases = [case.name for case in video.measure(Options(torch.device("cuda")))][2:]
    assert [name.split()[0] for name in cases[:4]] == list(video.PRESETS)
    objects = [int(name.split()[-2]) for name in cases]
    assert objects == sorted(objects)
    assert set(objects) == {1, 4, 8, 16, 64}
