"""A run on disk, by function and by command: files, the log, resuming, several processes, and what
is refused.
"""

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


def command(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "sam2_fast.cli", "train", *map(str, arguments)]
    return subprocess.run(
        program,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=200,
        check=False,
    )


def steps(output: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (output / LOG).read_text().splitlines()]


def test_a_run_leaves_weights_a_checkpoint_and_a_log(tmp_path: Path) -> None:
    recipe = Recipe.load(write_recipe(tmp_path))
    losses = train_to(tmp_path / "run", recipe, device="cpu", progress=False)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted(
        [CHECKPOINT, WEIGHTS, LOG]
    )
    assert steps(tmp_path / "run") == [1, 2, 3, 4, 5, 6] and losses["total"] > 0
    build_sam2(recipe.model, tmp_path / "run" / WEIGHTS, device="cpu")
    assert (tmp_path / "run" / WEIGHTS).stat().st_mode == (tmp_path / "run" / LOG).stat().st_mode, (
        "as the umask has it"
    )


def test_a_killed_run_is_resumed_by_the_command_with_the_same_weights(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    assert command(path, "-o", tmp_path / "whole", "--device", "cpu", "--every", 2).returncode == 0
    train_to(tmp_path / "run", Recipe.load(path), device="cpu", every=4, progress=False)
    content = torch.load(tmp_path / "run" / CHECKPOINT, weights_only=True)
    assert content["step"] == 6
    # as if killed on the way: an older checkpoint, and a log that is ahead of it
    half = command(
        path, "-o", tmp_path / "half", "--device", "cpu", "--every", 4, OMP_NUM_THREADS="1"
    )
    assert half.returncode == 0, half.stderr
    refused = command(path, "-o", tmp_path / "half", "--device", "cpu")
    assert (
        refused.returncode == 2
        and "of an earlier run; resume it, or choose another folder" in refused.stderr
    )
    _cut(path, tmp_path / "half")
    again = command(path, "-o", tmp_path / "half", "--device", "cpu", "--resume", "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["files"] == [
        str(tmp_path / "half" / name) for name in (CHECKPOINT, WEIGHTS)
    ]
    assert steps(tmp_path / "half") == [1, 2, 3, 4, 5, 6]
    whole, resumed = (load_file(tmp_path / name / WEIGHTS) for name in ("run", "half"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def _cut(path: Path, folder: Path) -> None:
    """A run's state after 4 of its 6 steps."""
    trainer = Trainer(Recipe.load(path))
    for _ in zip(range(4), trainer.run(progress=False), strict=False):
        pass
    trainer.save(folder / CHECKPOINT)


def test_a_run_that_was_shot_leaves_whole_files_and_goes_on(tmp_path: Path) -> None:
    path, output = write_recipe(tmp_path, stages=[{"steps": 400}], warmup=0), tmp_path / "run"
    program = [
        sys.executable,
        "-m",
        "sam2_fast.cli",
        "train",
        str(path),
        "-o",
        str(output),
        "--device",
        "cpu",
        "--every",
        "3",
    ]
    process = subprocess.Popen(program, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 100
    while (
        not (output / CHECKPOINT).is_file()
        and process.poll() is None
        and time.monotonic() < deadline
    ):
        time.sleep(0.02)
    process.kill()
    process.communicate(timeout=60)
    content = torch.load(output / CHECKPOINT, weights_only=True)
    assert process.returncode == -9 and content["step"] % 3 == 0 and not (output / WEIGHTS).exists()
    trainer = Trainer(Recipe.load(path))
    trainer.resume(output / CHECKPOINT)
    next(trainer.run(progress=False))
    assert trainer.step == content["step"] + 1


def test_torchrun_trains_with_two_processes(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, stages=[{"steps": 2}])
    program = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "sam2_fast.cli",
        "train",
    ]
    arguments = [path, "-o", tmp_path / "run", "--device", "cpu", "--no-progress"]
    found = subprocess.run(
        [sys.executable, *program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert found.returncode == 0, found.stderr[-2000:]
    assert steps(tmp_path / "run") == [1, 2] and (tmp_path / "run" / WEIGHTS).is_file()


def test_tensorboard_events_are_written(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    recipe = Recipe.load(write_recipe(tmp_path, stages=[{"steps": 2}]))
    train_to(tmp_path / "run", recipe, device="cpu", tensorboard=True, progress=False)
    events = accumulator.EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    logged = [
        json.loads(line)["total"] for line in (tmp_path / "run" / LOG).read_text().splitlines()
    ]
    assert [event.value for event in events.Scalars("total")] == pytest.approx(logged)


@pytest.mark.parametrize(
    ("changes", "options", "words"),
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
def test_bad_input_ends_in_one_line(
    tmp_path: Path, changes: dict[str, object], options: list[str], words: str
) -> None:
    found = command(
        write_recipe(tmp_path, **changes), "-o", tmp_path / "run", "--device", "cpu", *options
    )
    assert found.returncode == 2 and words in found.stderr and "Traceback" not in found.stderr, (
        found.stderr[-2000:]
    )
