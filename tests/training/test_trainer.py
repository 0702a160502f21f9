"""The training loop: bit-exact resuming, losses that are not finite, workers and processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sam2_fast import build_sam2
from sam2_fast.training import Recipe, Trainer
from sam2_fast.training.trainer import draw_batch
from sam2_fast.weights.checkpoint import CheckpointError
from tests.training.recipes import write_recipe


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return Recipe.load(write_recipe(tmp_path))


def run(trainer: Trainer, output: Path | None = None, every: int = 2) -> Iterator[dict[str, float]]:
    return trainer.run(output, every, progress=False)


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# In the first stage, and in the second one, whose images have another size.
@pytest.mark.parametrize("stop", [2, 4])
def test_a_resumed_run_is_bitwise_equal_to_an_uninterrupted_one(
    recipe: Recipe, tmp_path: Path, stop: int
) -> None:
    whole = Trainer(recipe)
    losses = list(run(whole))
    interrupted = Trainer(recipe)
    for _ in zip(range(stop), run(interrupted, tmp_path / "checkpoint.pt"), strict=False):
        pass
    resumed = Trainer(recipe)
    resumed.resume(tmp_path / "checkpoint.pt")
    assert resumed.step == stop and list(run(resumed)) == losses[stop:]
    assert equal(resumed.weights(), whole.weights())
    assert equal(resumed.model.state_dict(), whole.model.state_dict())
    # The weights of a run are moving averages.
    assert not equal(whole.weights(), whole.model.state_dict())


def test_clips_drawn_by_workers_give_the_same_weights(recipe: Recipe) -> None:
    without_workers = Trainer(recipe)
    with_worker = Trainer(recipe, workers=1)
    assert list(run(without_workers)) == list(run(with_worker))
    assert equal(without_workers.weights(), with_worker.weights())


def test_builders_load_a_checkpoint(recipe: Recipe, tmp_path: Path) -> None:
    trainer = Trainer(recipe)
    list(run(trainer, tmp_path / "checkpoint.pt", 100))
    model = build_sam2(recipe.model, tmp_path / "checkpoint.pt", device="cpu", image_size=96)
    assert equal(dict(model.state_dict()), dict(trainer.weights()))


def test_checkpoints_of_another_recipe_and_other_files_are_refused(
    recipe: Recipe, tmp_path: Path
) -> None:
    Trainer(recipe).save(tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError, match="was trained by another recipe"):
        Trainer(replace(recipe, seed=8)).resume(tmp_path / "checkpoint.pt")
    torch.save({"model": {}}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="expected a training checkpoint"):
        Trainer(recipe).resume(tmp_path / "other.pt")


def test_a_loss_that_is_not_finite_raises_before_the_weights_change(recipe: Recipe) -> None:
    trainer = Trainer(recipe)
    before = {name: t.clone() for name, t in trainer.model.state_dict().items()}
    batch = draw_batch(recipe, 0)
    batch.images[0, 0, 0, 0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match=r"step 0: .* not finite"):
        trainer.advance(batch)
    assert trainer.step == 0 and equal(dict(trainer.model.state_dict()), before)


def test_a_failed_save_leaves_the_last_checkpoint(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(recipe)
    path = tmp_path / "checkpoint.pt"
    trainer.save(path)
    before = path.read_bytes()

    def fail(content: object, file: Path) -> None:
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device", str(file))

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="No space left"):
        trainer.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir() if "checkpoint" in p.name] == ["checkpoint.pt"]


def test_training_does_not_change_the_global_random_generator(recipe: Recipe) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    next(run(Trainer(recipe)))
    assert torch.equal(torch.rand(4), expected)


def test_training_lowers_the_loss_under_bfloat16_and_recomputation(recipe: Recipe) -> None:
    stage = replace(recipe.stages[0], steps=25, warmup=3)
    trainer = Trainer(
        replace(recipe, stages=(stage,), bfloat16=True, recompute=True, clip_norm=1.0)
    )
    totals = [losses["total"] for losses in run(trainer)]
    assert sum(totals[-5:]) < 0.6 * sum(totals[:5])
    assert all(p.dtype is torch.float32 for p in trainer.model.parameters())


def test_two_processes_equal_one_with_the_double_batch(tmp_path: Path) -> None:
    source = {"kind": "synthetic", "frames": 2, "objects": 2, "length": 100}
    changes = {"stages": [{"steps": 3}], "ema": 0.0, "layer_decay": 1.0}
    changes |= {"dropout": 0.0, "drop_path": 0.0}  # each process drops other values
    one = Trainer(Recipe.load(write_recipe(tmp_path, sources=[source | {"batch": 4}], **changes)))
    losses = list(run(one))
    path = write_recipe(tmp_path, sources=[source | {"batch": 2}], **changes)
    program = Path(__file__).with_name("two_processes.py")
    commands = [
        [sys.executable, str(program), str(path), str(tmp_path), str(rank)] for rank in range(2)
    ]
    processes = [
        subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
        for command in commands
    ]
    assert [process.wait(timeout=200) for process in processes] == [0, 0]
    results = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    assert equal(results[0]["model"], results[1]["model"])
    for step, (a, b) in enumerate(zip(*(r["totals"] for r in results), strict=True)):
        assert (a + b) / 2 == pytest.approx(losses[step]["total"], rel=1e-3)
    first = Trainer(one.recipe)
    first.advance()
    gradients = {name: p.grad for name, p in first.model.named_parameters() if p.grad is not None}
    norm = torch.stack([g.norm() for g in gradients.values()]).norm()
    assert results[0]["gradients"].keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert (results[0]["gradients"][name] - gradient).norm() <= 1e-5 * norm, name
