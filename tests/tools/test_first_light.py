"""The first minutes on a GPU, rehearsed: nothing is lost when a step fails, hangs, or loses its
device."""

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
    """How each step ended."""
    return {r["step"]: r["status"] for r in read(out / "first_light.jsonl") if r["item"] == "end"}


def run(out: Path, *steps: str, **options: Any) -> int:
    return run_steps(Plan(steps=steps, out=out, rehearse="cpu", **{"seconds": 200.0, **options}))


def test_steps_on_a_cpu_say_what_they_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "setup", "memcheck") == 0
    assert statuses(tmp_path) == {"setup": "ok", "memcheck": "ok"}
    records = read(tmp_path / "first_light.jsonl")
    found = {r["item"]: r for r in records if r["step"] == "setup"}
    assert {"versions", "card", "triton key", "package", "matrix product", "copy"} <= set(found)
    assert found["matrix product"]["tflops"] > 0
    with tarfile.open(tmp_path / "all.tgz") as archive:
        assert {"first_light.jsonl", "setup.log", "memcheck.log"} <= set(archive.getnames())
    assert "matrix product" in capsys.readouterr().out


def test_the_doctor_is_a_step(tmp_path: Path) -> None:
    assert run(tmp_path, "doctor") == 0
    records = [r for r in read(tmp_path / "first_light.jsonl") if r["step"] == "doctor"]
    found = {r["item"]: r for r in records}
    assert found["doctor"]["status"] == "ok"
    assert any(item.startswith("hiera_block cpu") for item in found)
    with tarfile.open(tmp_path / "all.tgz") as archive:
        assert "doctor.json" in archive.getnames()


@pytest.mark.parametrize("fail", ["memcheck", "memcheck:hang"])
def test_a_step_that_fails_or_hangs_takes_nothing_along(tmp_path: Path, fail: str) -> None:
    limits = {"setup": 60.0, "memcheck": 6.0 if fail.endswith("hang") else 60.0}
    assert run(tmp_path, "memcheck", "setup", fail=fail, limits=limits) == 1
    ended = statuses(tmp_path)
    assert ended["setup"] == "ok"
    assert ended["memcheck"] == (
        "stopped at its limit of 6 s" if fail.endswith("hang") else "failed: exit 1"
    )
    end = next(
        r
        for r in read(tmp_path / "first_light.jsonl")
        if r["step"] == "memcheck" and r["item"] == "end"
    )
    assert fail.endswith("hang") or "memcheck was told to fail" in end["log"]
    assert (tmp_path / "all.tgz").is_file()


def test_steps_without_time_are_named(tmp_path: Path) -> None:
    assert run(tmp_path, "setup", "ops", seconds=RESERVE + 1) == 1
    assert statuses(tmp_path) == dict.fromkeys(("setup", "ops"), "not run: no time is left")


def test_a_step_that_loses_its_device_goes_on_with_the_next_item(
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


class Sticky(Context):
    """A context on a GPU that is lost."""

    @property
    def cuda(self) -> bool:
        return True

    def synchronize(self) -> None:
        return


def test_items_that_fail_are_records_and_the_rest_goes_on(tmp_path: Path) -> None:
    context = Context("ops", tmp_path, None, "cpu")

    def broken() -> dict[str, Any]:
        raise ValueError("a kernel's shape")

    context.attempt("first", lambda: {"value": 1})
    context.attempt("second", broken)
    context.attempt("third", lambda: {"value": 3})
    records = read(tmp_path / "first_light.jsonl")
    assert [r["item"] for r in records] == ["first", "second", "third"]
    assert (
        records[1]["status"] == "failed: ValueError: a kernel's shape"
        and "broken" in records[1]["traceback"]
    )
    again = Context("ops", tmp_path, None, "cpu")
    again.attempt("second", lambda: {"value": 2})
    assert len(read(tmp_path / "first_light.jsonl")) == 3, "what has a record is left out"


def test_a_cuda_error_ends_the_process_after_its_record(tmp_path: Path) -> None:
    def lost() -> dict[str, Any]:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(SystemExit) as stopped:
        Sticky("ops", tmp_path, None, "cpu").attempt("kernel", lost)
    assert stopped.value.code == runner.RESTART
    assert "illegal memory access" in read(tmp_path / "first_light.jsonl")[0]["status"]


def test_another_run_in_the_same_folder_measures_everything_again(tmp_path: Path) -> None:
    assert run(tmp_path, "memcheck", fail="memcheck") == 1
    assert run(tmp_path, "memcheck") == 0
    assert run(tmp_path, "memcheck") == 0
    items = [r["item"] for r in read(tmp_path / "first_light.jsonl") if r["step"] == "memcheck"]
    assert items == ["end", "memcheck", "end", "memcheck", "end"]


def test_what_later_items_need_is_done_again_in_a_new_process_but_not_recorded(
    tmp_path: Path,
) -> None:
    calls: list[str] = []

    def broken() -> None:
        calls.append("broken")
        raise ValueError("no")

    for _ in range(2):
        context = Context("golden", tmp_path, None, "cpu")
        context.attempt("needed", lambda: calls.append("needed"), again=True)
        context.attempt("broken", broken, again=True)
        context.attempt("other", lambda: calls.append("other"))
    assert calls == ["needed", "broken", "other", "needed"]
    assert len(read(tmp_path / "first_light.jsonl")) == 3


def test_masks_that_are_known_are_kept_when_a_capture_breaks(
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
    found = {r["item"]: r.get("status") for r in read(tmp_path / "first_light.jsonl")}
    assert found["tiny torch"] == found["tiny kernels"] == found["tiny own stream"] == "ok"
    assert found["tiny graphs"] == "failed: RuntimeError: capture failed"
    assert found["tiny golden"] == "ok"


def test_a_line_that_was_cut_off_does_not_spoil_the_others(tmp_path: Path) -> None:
    path = tmp_path / "first_light.jsonl"
    append(path, {"step": "a", "item": "b"})
    with path.open("a") as file:
        file.write('{"step": "a", "it')
    assert read(path) == [{"step": "a", "item": "b"}]


def test_the_table_fits_and_keeps_the_ends_of_the_steps() -> None:
    rows = [{"step": "ops", "item": f"op {i}", "us": 1.5, "note": "x" * 150} for i in range(200)]
    ends = [
        {
            "step": step,
            "item": "end",
            "status": "failed: exit 1",
            "seconds": 1.0,
            "log": "why " * 99,
        }
        for step in STEPS
    ]
    text = table([*rows, *ends])
    assert len(text) <= MOST and "more lines in first_light.jsonl" in text
    assert all(f"\n{step}" in text for step in STEPS)


def test_the_default_steps_fit_into_five_minutes() -> None:
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


def test_a_carried_cache_of_another_triton_is_said_to_be_so(tmp_path: Path) -> None:
    from benchmarks.first_light.steps import setup

    pytest.importorskip("triton")
    (tmp_path / "contents.json").write_text(json.dumps({"triton_key": "0" * 16}))
    assert "another Triton" in setup._triton_key(tmp_path)["status"]
    (tmp_path / "contents.json").write_text(json.dumps({"triton_key": setup.triton_key()}))
    assert setup._triton_key(tmp_path)["valid"]
