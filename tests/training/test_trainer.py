"""The training loop: resumed to the bit, stopped by what is not finite, several processes as one,
and nothing of the caller's touched.
"""

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


# Within the first stage, and the second, whose images have another size.
@pytest.mark.parametrize("stop", [2, 4])
def test_a_resumed_run_ends_bit_equal_to_an_uninterrupted_one(
    recipe: Recipe, tmp_path: Path, stop: int
) -> None:
    whole, first, second = Trainer(recipe), Trainer(recipe), Trainer(recipe)
    losses = list(run(whole))
    for _ in zip(range(stop), run(first, tmp_path / "checkpoint.pt"), strict=False):
        pass
    second.resume(tmp_path / "checkpoint.pt")
    assert second.step == stop and list(run(second)) == losses[stop:]
    assert equal(second.weights(), whole.weights()) and equal(
        second.model.state_dict(), whole.model.state_dict()
    )
    assert not equal(whole.weights(), whole.model.state_dict()), (
        "a moving average is not the last step"
    )


def test_clips_drawn_by_workers_are_the_same(recipe: Recipe) -> None:
    alone, helped = Trainer(recipe), Trainer(recipe, workers=1)
    assert list(run(alone)) == list(run(helped)) and equal(alone.weights(), helped.weights())


def test_a_checkpoint_loads_into_the_builders(recipe: Recipe, tmp_path: Path) -> None:
    trainer = Trainer(recipe)
    list(run(trainer, tmp_path / "checkpoint.pt", 100))
    model = build_sam2(recipe.model, tmp_path / "checkpoint.pt", device="cpu", image_size=96)
    assert equal(dict(model.state_dict()), dict(trainer.weights()))


def test_another_recipe_or_another_file_is_not_resumed(recipe: Recipe, tmp_path: Path) -> None:
    Trainer(recipe).save(tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError, match="was trained by another recipe"):
        Trainer(replace(recipe, seed=8)).resume(tmp_path / "checkpoint.pt")
    torch.save({"model": {}}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="expected a training checkpoint"):
        Trainer(recipe).resume(tmp_path / "other.pt")


def test_a_loss_that_is_not_finite_stops_before_the_weights_change(recipe: Recipe) -> None:
    trainer = Trainer(recipe)
    before = {name: t.clone() for name, t in trainer.model.state_dict().items()}
    batch = draw_batch(recipe, 0)
    batch.images[0, 0, 0, 0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match=r"step 0: .* not finite"):
        trainer.advance(batch)
    assert trainer.step == 0 and equal(dict(trainer.model.state_dict()), before)


def test_a_killed_save_leaves_the_last_checkpoint(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, path = Trainer(recipe), tmp_path / "checkpoint.pt"
    trainer.save(path)
    before = path.read_bytes()

    def full(content: object, file: Path) -> None:
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device", str(file))

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        trainer.save(path)
    assert path.read_bytes() == before and [
        p.name for p in tmp_path.iterdir() if "checkpoint" in p.name
    ] == ["checkpoint.pt"]


def test_random_numbers_of_the_caller_are_left_alone(recipe: Recipe) -> None:
    torch.manual_seed(3)
    wanted = torch.rand(4)
    torch.manual_seed(3)
    next(run(Trainer(recipe)))
    assert torch.equal(torch.rand(4), wanted)


def test_training_lowers_the_loss_under_bfloat16_and_recomputation(recipe: Recipe) -> None:
    stage = replace(recipe.stages[0], steps=25, warmup=3)
    trainer = Trainer(
        replace(recipe, stages=(stage,), bfloat16=True, recompute=True, clip_norm=1.0)
    )
    totals = [found["total"] for found in run(trainer)]
    assert sum(totals[-5:]) < 0.6 * sum(totals[:5])
    assert all(p.dtype is torch.float32 for p in trainer.model.parameters())


def test_two_processes_equal_one_with_the_double_batch(tmp_path: Path) -> None:
    source = {"kind": "synthetic", "frames": 2, "objects": 2, "length": 100}
    changes = {"stages": [{"steps": 3}], "ema": 0.0, "layer_decay": 1.0}
    one = Trainer(Recipe.load(write_recipe(tmp_path, sources=[source | {"batch": 4}], **changes)))
    losses = list(run(one))
    path = write_recipe(tmp_path, sources=[source | {"batch": 2}], **changes)
    program = Path(__file__).with_name("two_processes.py")
    commands = [
        [sys.executable, str(program), str(path), str(tmp_path), str(rank)] for rank in range(2)
    ]
    started = [
        subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
        for command in commands
    ]
    assert [process.wait(timeout=200) for process in started] == [0, 0]
    found = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    assert equal(found[0]["model"], found[1]["model"]), "all processes have the same weights"
    for step, (a, b) in enumerate(zip(*(f["totals"] for f in found), strict=True)):
        assert (a + b) / 2 == pytest.approx(losses[step]["total"], rel=1e-3)
    first = Trainer(one.recipe)
    first.advance()
    gradients = {name: p.grad for name, p in first.model.named_parameters() if p.grad is not None}
    norm = torch.stack([g.norm() for g in gradients.values()]).norm()
    assert found[0]["gradients"].keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert (found[0]["gradients"][name] - gradient).norm() <= 1e-5 * norm, name
