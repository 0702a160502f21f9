"""Training runs with files: checkpoints, the log, resuming, several processes, refused input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sam2_fast import build_sam2
from sam2_fast.training import Recipe, Trainer
from sam2_fast.training.run import CHECKPOINT, LOG, WEIGHTS, train_to
from tests.training.recipes import write_recipe

TRAIN = (sys.executable, "-m", "sam2_fast.cli", "train")


def train(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `sam2-fast train` on the CPU."""
    return subprocess.run(
        [*TRAIN, *map(str, arguments), "--device", "cpu"],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=200,
        check=False,
    )


def logged_steps(output: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (output / LOG).read_text().splitlines()]


def test_a_run_writes_weights_a_checkpoint_and_a_log(tmp_path: Path) -> None:
    recipe = Recipe.load(write_recipe(tmp_path))
    output = tmp_path / "run"
    losses = train_to(output, recipe, device="cpu", progress=False)
    assert {path.name for path in output.iterdir()} == {CHECKPOINT, WEIGHTS, LOG}
    assert logged_steps(output) == [1, 2, 3, 4, 5, 6]
    assert losses["total"] > 0
    build_sam2(recipe.model, output / WEIGHTS, device="cpu")
    # The umask applies to all files.
    assert (output / WEIGHTS).stat().st_mode == (output / LOG).stat().st_mode


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    whole = tmp_path / "whole"
    resumed = tmp_path / "resumed"
    assert train(path, "-o", tmp_path / "other", "--every", 2).returncode == 0
    train_to(whole, Recipe.load(path), device="cpu", every=4, progress=False)
    content = torch.load(whole / CHECKPOINT, weights_only=True)
    assert content["step"] == 6
    first = train(path, "-o", resumed, "--every", 4, OMP_NUM_THREADS="1")
    assert first.returncode == 0, first.stderr
    without_resume = train(path, "-o", resumed)
    assert without_resume.returncode == 2
    message = "of an earlier run; resume it, or choose another folder"
    assert message in without_resume.stderr
    # After this the log has more steps than the checkpoint, as in a run that was killed.
    save_checkpoint_of_step_4(path, resumed)
    second = train(path, "-o", resumed, "--resume", "--json")
    assert second.returncode == 0, second.stderr
    files = [str(resumed / name) for name in (CHECKPOINT, WEIGHTS)]
    assert json.loads(second.stdout)["files"] == files
    assert logged_steps(resumed) == [1, 2, 3, 4, 5, 6]
    expected, weights = (load_file(folder / WEIGHTS) for folder in (whole, resumed))
    assert all(torch.equal(expected[name], weights[name]) for name in expected)


@pytest.mark.reliability("F10")
def test_a_log_above_the_limit_is_kept_and_the_limit_can_be_raised(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    recipe = Recipe.load(path)
    output = tmp_path / "run"
    train_to(output, recipe, device="cpu", progress=False)
    log = (output / LOG).read_text()
    with pytest.raises(ValueError, match=r"log .* larger than 9 bytes.*max_log_bytes="):
        train_to(output, recipe, resume=True, device="cpu", progress=False, max_log_bytes=9)
    assert (output / LOG).read_text() == log
    train_to(output, recipe, resume=True, device="cpu", progress=False, max_log_bytes=len(log))
    assert (output / LOG).read_text() == log


def save_checkpoint_of_step_4(path: Path, folder: Path) -> None:
    trainer = Trainer(Recipe.load(path))
    for _ in zip(range(4), trainer.run(progress=False), strict=False):
        pass
    trainer.save(folder / CHECKPOINT)


def test_a_killed_run_leaves_complete_files_and_can_be_resumed(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, stages=[{"steps": 400}], warmup=0)
    output = tmp_path / "run"
    command = [*TRAIN, str(path), "-o", str(output), "--device", "cpu", "--every", "3"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 100
    checkpoint = output / CHECKPOINT
    while not checkpoint.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.communicate(timeout=60)
    content = torch.load(checkpoint, weights_only=True)
    assert process.returncode == -9
    assert content["step"] % 3 == 0
    assert not (output / WEIGHTS).exists()
    trainer = Trainer(Recipe.load(path))
    trainer.resume(output / CHECKPOINT)
    next(trainer.run(progress=False))
    assert trainer.step == content["step"] + 1


def test_torchrun_trains_with_two_processes(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, stages=[{"steps": 2}])
    output = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", *TRAIN[1:], str(path), "-o", str(output)]
    command += ["--device", "cpu", "--no-progress"]
    completed = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert completed.returncode == 0, completed.stderr[-2000:]
    assert logged_steps(output) == [1, 2] and (output / WEIGHTS).is_file()


def test_tensorboard_events_are_written(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    recipe = Recipe.load(write_recipe(tmp_path, stages=[{"steps": 2}]))
    train_to(tmp_path / "run", recipe, device="cpu", tensorboard=True, progress=False)
    events = accumulator.EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    log = (tmp_path / "run" / LOG).read_text().splitlines()
    totals = [json.loads(line)["total"] for line in log]
    assert [event.value for event in events.Scalars("total")] == pytest.approx(totals)


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"stepz": 1}, [], "unknown stepz"),
        (
            {"sources": [{"kind": "folder", "images": "no", "masks": "nowhere"}]},
            [],
            "annotations nowhere: no such folder",
        ),
        ({"weights": "none.pt"}, [], "none.pt: no such file"),
        ({}, ["--resume"], "has no checkpoint.pt to resume from"),
        ({"lr": 1e30, "warmup": 0}, [], "not finite"),
    ],
)
def test_invalid_input_is_an_error_without_a_traceback(
    tmp_path: Path, changes: dict[str, object], options: list[str], message: str
) -> None:
    completed = train(write_recipe(tmp_path, **changes), "-o", tmp_path / "run", *options)
    assert completed.returncode == 2, completed.stderr[-2000:]
    assert message in completed.stderr
    assert "Traceback" not in completed.stderr
