"""The first run on a GPU, rehearsed on a CPU: no record is lost if a step fails or hangs."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.first_light import runner
from benchmarks.first_light.context import Context
from benchmarks.first_light.records import append, read
from benchmarks.first_light.runner import DEFAULT, LIMITS, RESERVE, STEPS, Plan, run_steps
from benchmarks.first_light.summary import MOST, table


def statuses(out: Path) -> dict[str, str]:
    """The status of each step that has ended."""
    return {r["step"]: r["status"] for r in read(out / "first_light.jsonl") if r["item"] == "end"}


def run(out: Path, *steps: str, **options: Any) -> int:
    return run_steps(Plan(steps=steps, out=out, rehearse="cpu", **{"seconds": 200.0, **options}))


def test_steps_on_a_cpu_record_and_print_their_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "setup", "memcheck") == 0
    assert statuses(tmp_path) == {"setup": "ok", "memcheck": "ok"}
    records = read(tmp_path / "first_light.jsonl")
    items = {r["item"]: r for r in records if r["step"] == "setup"}
    assert {"versions", "card", "triton key", "package", "matrix product", "copy"} <= set(items)
    assert items["matrix product"]["tflops"] > 0
    with tarfile.open(tmp_path / "all.tgz") as archive:
        assert {"first_light.jsonl", "setup.log", "memcheck.log"} <= set(archive.getnames())
    assert "matrix product" in capsys.readouterr().out


def test_the_doctor_is_a_step(tmp_path: Path) -> None:
    assert run(tmp_path, "doctor") == 0
    records = [r for r in read(tmp_path / "first_light.jsonl") if r["step"] == "doctor"]
    items = {r["item"]: r for r in records}
    assert items["doctor"]["status"] == "ok"
    assert any(item.startswith("hiera_block cpu") for item in items)
    with tarfile.open(tmp_path / "all.tgz") as archive:
        assert "doctor.json" in archive.getnames()


@pytest.mark.parametrize(
    ("fail", "limit", "status"),
    [
        ("memcheck", 60.0, "failed: exit 1"),
        ("memcheck:hang", 6.0, "stopped at its limit of 6 s"),
    ],
)
def test_a_step_that_fails_or_hangs_does_not_affect_others(
    tmp_path: Path, fail: str, limit: float, status: str
) -> None:
    limits = {"setup": 60.0, "memcheck": limit}
    assert run(tmp_path, "memcheck", "setup", fail=fail, limits=limits) == 1
    assert statuses(tmp_path) == {"setup": "ok", "memcheck": status}
    records = read(tmp_path / "first_light.jsonl")
    (end,) = (r for r in records if r["step"] == "memcheck" and r["item"] == "end")
    assert fail.endswith("hang") or "memcheck was told to fail" in end["log"]
    assert (tmp_path / "all.tgz").is_file()


def test_steps_that_do_not_run_for_lack_of_time_are_recorded(tmp_path: Path) -> None:
    assert run(tmp_path, "setup", "ops", seconds=RESERVE + 1) == 1
    assert statuses(tmp_path) == dict.fromkeys(("setup", "ops"), "not run: no time is left")


def test_a_step_that_loses_its_device_continues_with_the_next_item(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def process(arguments: list[str], *_: Any) -> str:
        calls.append(arguments)
        append(tmp_path / "first_light.jsonl", {"step": "ops", "item": f"item {len(calls)}"})
        return "ok" if len(calls) == 3 else f"failed: exit {runner.RESTART}"

    monkeypatch.setattr(runner, "_process", process)
    assert run(tmp_path, "ops") == 0
    assert len(calls) == 3 and statuses(tmp_path) == {"ops": "ok"}


def test_a_step_that_makes_no_progress_is_not_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def process(*arguments: Any) -> str:
        calls.append(arguments)
        arguments[4].write_text("no device")
        return f"failed: exit {runner.RESTART}"

    monkeypatch.setattr(runner, "_process", process)
    assert run(tmp_path, "ops") == 1
    assert len(calls) == 1


class LostGpuContext(Context):
    """A context on a GPU that does not work any more."""

    @property
    def cuda(self) -> bool:
        return True

    def synchronize(self) -> None:
        return


def test_items_that_fail_are_recorded_and_the_others_continue(tmp_path: Path) -> None:
    context = Context("ops", tmp_path, None, "cpu")

    def fail() -> dict[str, Any]:
        raise ValueError("a kernel's shape")

    context.attempt("first", lambda: {"value": 1})
    context.attempt("second", fail)
    context.attempt("third", lambda: {"value": 3})
    records = read(tmp_path / "first_light.jsonl")
    assert [r["item"] for r in records] == ["first", "second", "third"]
    assert records[1]["status"] == "failed: ValueError: a kernel's shape"
    assert "in fail" in records[1]["traceback"]
    second_process = Context("ops", tmp_path, None, "cpu")
    second_process.attempt("second", lambda: {"value": 2})
    assert len(read(tmp_path / "first_light.jsonl")) == 3, "an item was measured again"


def test_a_cuda_error_ends_the_process_after_its_record(tmp_path: Path) -> None:
    def lose_device() -> dict[str, Any]:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(SystemExit) as stopped:
        LostGpuContext("ops", tmp_path, None, "cpu").attempt("kernel", lose_device)
    assert stopped.value.code == runner.RESTART
    assert "illegal memory access" in read(tmp_path / "first_light.jsonl")[0]["status"]


def test_another_run_in_the_same_folder_measures_everything_again(tmp_path: Path) -> None:
    assert run(tmp_path, "memcheck", fail="memcheck") == 1
    assert run(tmp_path, "memcheck") == 0
    assert run(tmp_path, "memcheck") == 0
    items = [r["item"] for r in read(tmp_path / "first_light.jsonl") if r["step"] == "memcheck"]
    assert items == ["end", "memcheck", "end", "memcheck", "end"]


def test_items_that_later_ones_need_run_again_in_a_new_process_without_a_record(
    tmp_path: Path,
) -> None:
    calls: list[str] = []

    def fail() -> None:
        calls.append("failing")
        raise ValueError("no")

    for _ in range(2):
        context = Context("golden", tmp_path, None, "cpu")
        context.attempt("needed", lambda: calls.append("needed"), again=True)
        context.attempt("failing", fail, again=True)
        context.attempt("other", lambda: calls.append("other"))
    assert calls == ["needed", "failing", "other", "needed"]
    assert len(read(tmp_path / "first_light.jsonl")) == 3


def test_other_masks_are_recorded_if_a_capture_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.first_light.steps import golden

    results = iter([1.0, 1.0, None, 1.0, 1.0])

    def masks(predictor: Any, folder: str, count: int) -> torch.Tensor:
        if (value := next(results)) is None:
            raise RuntimeError("capture failed")
        return torch.full((count, 1, 4, 4), value)

    monkeypatch.setattr(golden, "masks", masks)
    monkeypatch.setattr(golden, "build", lambda *_: SimpleNamespace(graphs=None))
    monkeypatch.setattr(golden, "_golden", lambda *_: torch.ones(3, 1, 4, 4))
    monkeypatch.setattr(golden, "_with_changed_weights", lambda *_: {"weights_matter": True})
    monkeypatch.setattr(Context, "frames", lambda self: tmp_path)
    golden.run(Context("golden", tmp_path, None, "cpu"))
    items = {r["item"]: r.get("status") for r in read(tmp_path / "first_light.jsonl")}
    assert items["tiny torch"] == items["tiny kernels"] == items["tiny own stream"] == "ok"
    assert items["tiny graphs"] == "failed: RuntimeError: capture failed"
    assert items["tiny golden"] == "ok"


def test_a_truncated_line_does_not_affect_the_others(tmp_path: Path) -> None:
    path = tmp_path / "first_light.jsonl"
    append(path, {"step": "a", "item": "b"})
    with path.open("a") as file:
        file.write('{"step": "a", "it')
    assert read(path) == [{"step": "a", "item": "b"}]


def test_the_table_is_limited_and_includes_the_end_of_every_step() -> None:
    rows = [{"step": "ops", "item": f"op {i}", "us": 1.5, "note": "x" * 150} for i in range(200)]
    end = {"item": "end", "status": "failed: exit 1", "seconds": 1.0, "log": "why " * 99}
    ends = [{"step": step, **end} for step in STEPS]
    text = table([*rows, *ends])
    assert len(text) <= MOST and "more lines in first_light.jsonl" in text
    assert all(f"\n{step}" in text for step in STEPS)


def test_the_default_steps_are_limited_to_five_minutes() -> None:
    assert Plan(steps=DEFAULT, out=Path()).seconds <= 300
    assert set(DEFAULT) <= set(STEPS) == set(LIMITS)


def test_every_file_with_gpu_tests_is_run() -> None:
    from benchmarks.first_light.steps.tests import FILES

    root = Path(__file__).resolve().parents[2]
    marked = [
        p
        for p in (root / "tests").rglob("test_*.py")
        if "pytest.mark.gpu" in p.read_text() and p != Path(__file__)
    ]
    assert marked
    assert all(any((root / name) in (path, *path.parents) for name in FILES) for path in marked)


def test_a_packed_cache_of_another_triton_is_reported(tmp_path: Path) -> None:
    from benchmarks.first_light.steps import setup

    pytest.importorskip("triton")
    (tmp_path / "contents.json").write_text(json.dumps({"triton_key": "0" * 16}))
    assert "another Triton" in setup._triton_key(tmp_path)["status"]
    (tmp_path / "contents.json").write_text(json.dumps({"triton_key": setup.triton_key()}))
    assert setup._triton_key(tmp_path)["valid"]
