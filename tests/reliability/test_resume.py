"""Resuming a training run changes everything or nothing, and raises CheckpointError only."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from sam2_fast.training import Recipe, Trainer
from sam2_fast.weights.checkpoint import CheckpointError
from tests.reliability.faults import (
    HOW_MANY,
    FailingOp,
    InterruptedLine,
    files_of,
    positions_of,
)
from tests.training.recipes import SMALL, write_recipe

TINY = {
    **SMALL["model"],
    "embed_dim": 8,
    "hidden_dim": 32,
    "memory_dim": 16,
    "memory_ffn_dim": 32,
    "num_maps": 2,
    "decoder_mlp_dim": 32,
    "fuser_dim": 32,
}


class Saved:
    """A trainer before resuming, and a checkpoint of one that did two steps."""

    def __init__(self, folder: Path) -> None:
        recipe = Recipe.load(write_recipe(folder, model=TINY))
        trained = Trainer(recipe)
        trained.advance()
        trained.advance()
        self.path = folder / "checkpoint.pt"
        trained.save(self.path)
        self.after = state_of(trained)
        self.trainer = Trainer(recipe)
        self.trainer.advance()
        self.before = state_of(self.trainer)
        self._start = folder / "start.pt"
        self.trainer.save(self._start)

    def restart(self) -> None:
        """Bring the trainer back to its first step."""
        self.trainer.resume(self._start)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return Saved(tmp_path_factory.mktemp("resume"))


def state_of(trainer: Trainer) -> dict[str, Any]:
    average = trainer._average or {}
    return copy.deepcopy(
        {
            "weights": dict(trainer.model.state_dict()),
            "average": dict(average),
            "optimizer": trainer.optimizer.state_dict(),
            "step": trainer.step,
            "random": torch.get_rng_state(),
        }
    )


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


class Payload:
    """An object that creates a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (Path.touch, (self.target,))


def changed(path: Path, change: Callable[[dict[str, Any]], object], source: Path) -> None:
    content = torch.load(source, weights_only=True)
    change(content)
    torch.save(content, path)


def first(table: dict[Any, Any]) -> Any:
    return table[next(iter(table))]


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "nonsense": lambda c: c.update(optimizer={"nonsense": 1}),
    "no optimizer": lambda c: c.pop("optimizer"),
    "optimizer is a list": lambda c: c.update(optimizer=[1]),
    "group missing": lambda c: c["optimizer"]["param_groups"].pop(),
    "parameters": lambda c: c["optimizer"]["param_groups"][0].update(params=[999]),
    "setting": lambda c: c["optimizer"]["param_groups"][0].update(betas="x"),
    "not finite": lambda c: c["optimizer"]["param_groups"][0].update(lr=float("nan")),
    "moment": lambda c: first(c["optimizer"]["state"]).update(exp_avg=torch.zeros(1)),
    "moment missing": lambda c: first(c["optimizer"]["state"]).pop("exp_avg"),
    "unknown parameter": lambda c: c["optimizer"]["state"].update({10**6: {}}),
    "step": lambda c: c.update(step="two"),
    "step far": lambda c: c.update(step=10**9),
    "weights": lambda c: c["raw"].pop("no_mem_embed"),
    "average": lambda c: c["model"].pop("no_mem_embed"),
    "size": lambda c: c["raw"].update(no_mem_embed=torch.zeros(2)),
    "raw": lambda c: c.pop("raw"),
    "no tensor": lambda c: c["model"].update(no_mem_embed=3),
    "recipe": lambda c: c.update(recipe="another" * 10_000),
    "recipe is a list": lambda c: c.update(recipe=[]),
}
FILES: dict[str, Callable[[bytes, Path], bytes]] = {
    "empty": lambda data, target: b"",
    "two bytes": lambda data, target: data[:2],
    "half": lambda data, target: data[: len(data) // 2],
    "garbage": lambda data, target: bytes(range(256)) * 20,
    "payload": lambda data, target: pickle.dumps(Payload(target)),
    "list": lambda data, target: pickle.dumps([1, 2]),
}


@pytest.mark.reliability("F17", "38")
@pytest.mark.parametrize("name", [*CHANGES, *FILES])
def test_a_refused_checkpoint_changes_nothing(name: str, saved: Saved, tmp_path: Path) -> None:
    path = tmp_path / "wrong.pt"
    if name in CHANGES:
        changed(path, CHANGES[name], saved.path)
    else:
        path.write_bytes(FILES[name](saved.path.read_bytes(), tmp_path / "ran"))
    with pytest.raises(CheckpointError, match=r"wrong\.pt") as caught:
        saved.trainer.resume(path)
    assert equal(state_of(saved.trainer), saved.before)
    assert len(str(caught.value)) < 2000 and not (tmp_path / "ran").exists()


FILES_OF_RESUME = files_of("training/trainer.py", "training/resumed.py", "weights/checkpoint.py")
FAULTS = {
    "error": FailingOp,
    "interrupt": lambda at=None: InterruptedLine(at, FILES_OF_RESUME),
}


@pytest.mark.reliability("F17", "27", "interrupts")
@pytest.mark.parametrize("most", HOW_MANY)
@pytest.mark.parametrize("kind", FAULTS)
def test_resuming_that_raises_changes_everything_or_nothing(
    saved: Saved, kind: str, most: int
) -> None:
    resume = partial(saved.trainer.resume, saved.path)
    positions = positions_of(resume, FAULTS[kind](), most)
    assert equal(state_of(saved.trainer), saved.after)
    saved.restart()
    for position in positions:
        fault = FAULTS[kind](position)
        try:
            with fault:
                resume()
        except (RuntimeError, CheckpointError, KeyboardInterrupt):
            pass
        else:
            raise AssertionError(f"{kind} {position} did not raise")
        state = state_of(saved.trainer)
        assert equal(state, saved.before) or equal(state, saved.after), fault.where
        if not equal(state, saved.before):
            saved.restart()
