"""The training loop: clips, losses, steps of AdamW.

Training can be stopped and resumed at any step with bitwise equal results.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

from sam2_fast.config import Options
from sam2_fast.files.atomic import whole_file
from sam2_fast.io.progress import Bar
from sam2_fast.model import Sam2
from sam2_fast.official.base import SAM2Base
from sam2_fast.training.batches import Batch, collate
from sam2_fast.training.forward import simulate
from sam2_fast.training.losses import Losses, clip_losses, require_finite
from sam2_fast.training.optimizer import adamw, set_learning_rate
from sam2_fast.training.recipe import Recipe, Stage
from sam2_fast.training.resumed import load_optimizer, read_progress
from sam2_fast.training.simulation import draw_plan
from sam2_fast.training.sources import Source
from sam2_fast.weights.build import build_model
from sam2_fast.weights.checkpoint import restored_on_error

_PLAN, _CLIPS, _DROPOUT = 0, 1, 2  # uses of the random numbers of a step


class Trainer:
    """A model in training, in one process or in several of `torch.distributed`.

    Each process trains on its own batch. `step` is the number of steps done. A step is a function
    of the recipe and of its number: clips are numbered across all processes, so n processes with
    batch b do the same as one process with batch n * b, except for the order of sums, and for the
    values that dropout drops.
    """

    def __init__(
        self,
        recipe: Recipe,
        device: torch.device | str = "cpu",
        *,
        rank: int = 0,
        processes: int = 1,
        workers: int = 0,
    ) -> None:
        """workers: number of processes that draw clips in advance; 0: this process draws them."""
        self.recipe = recipe
        self.device = torch.device(device)
        self.step = 0
        self._rank = rank
        self._processes = processes
        self._workers = workers
        image_size = recipe.stages[0].image_size
        model = build_model(
            SAM2Base,
            recipe.model,
            recipe.weights,
            self.device,
            "train",
            apply_postprocessing=False,
            image_size=image_size,
            dtype=torch.float32,
            seed=recipe.seed,
        )
        self.model = _at_size(model, image_size, recipe)
        self.optimizer = adamw(self.model, recipe)
        self._average = (
            {name: p.detach().clone() for name, p in self.model.named_parameters()}
            if recipe.ema
            else None
        )
        self._forward: Callable[..., Losses] = self._wrap_model()

    def advance(self, batch: Batch | None = None) -> dict[str, float]:
        """Do one step. Returns its losses and the norm of the gradient.

        batch: the clips of this step; None draws them.
        Raises FloatingPointError if a loss or the gradient is not finite; the weights are then
        unchanged.
        """
        recipe = self.recipe
        step = self.step
        stage, step_in_stage = recipe.at(step)
        if stage.image_size != self.model.config.image_size:
            self.model = _at_size(self.model, stage.image_size, recipe)
            self._forward = self._wrap_model()
        if batch is None:
            batch = draw_batch(recipe, step, self._rank, self._processes)
        batch = batch.to(self.device)
        self.optimizer.zero_grad(set_to_none=True)
        with self._kernels(), self._seeded(step):
            losses = self._forward(
                batch,
                stage,
                np.random.default_rng([recipe.seed, step, _PLAN]),
                self._mean_objects(batch),
            )
            require_finite(losses, f"step {step}")
            losses.total.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip_norm)
        if not bool(torch.isfinite(norm)):
            raise FloatingPointError(
                f"step {step}: the gradient is not finite; lower the learning rate, or check this "
                f"step's data"
            )
        set_learning_rate(self.optimizer, stage, step_in_stage)
        self.optimizer.step()
        if self._average is not None:
            for name, parameter in self.model.named_parameters():
                self._average[name].lerp_(parameter.detach(), 1 - recipe.ema)
        self.step += 1
        return {name: value.item() for name, value in losses._asdict().items()} | {
            "gradient": norm.item()
        }

    def run(
        self,
        output: str | os.PathLike[str] | None = None,
        every: int = 200,
        *,
        progress: bool = True,
    ) -> Iterator[dict[str, float]]:
        """Do all steps up to the recipe's end, and yield the result of `advance` for each.

        output: path of a checkpoint, written after every `every` steps and at the end.
        """
        steps = self.recipe.steps
        # A loader draws a seed, by default from torch's global generator, which the caller owns.
        loader = DataLoader(
            _Steps(self.recipe, self._rank, self._processes),
            batch_size=None,
            sampler=range(self.step, steps),
            num_workers=self._workers,
            generator=torch.Generator(),
            pin_memory=self.device.type == "cuda",
        )
        with Bar(total=steps, initial=self.step, desc="train", disable=not progress) as bar:
            for batch in loader:
                losses = self.advance(batch)
                bar.update(1)
                bar.set_postfix(
                    {name: f"{losses[name]:.3g}" for name in ("total", "dice", "iou")},
                    refresh=False,
                )
                if (
                    output is not None
                    and self._rank == 0
                    and (self.step % every == 0 or self.step == steps)
                ):
                    self.save(output)
                yield losses

    def weights(self) -> dict[str, Tensor]:
        """The state dict to use; of the moving average if the recipe has one."""
        return self.model.state_dict() | (self._average or {})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything that resuming needs. `build_sam2` loads the key "model".

        The file is complete or absent.
        """
        content = {
            "model": self.weights(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "recipe": self.recipe.text(),
        }
        if self._average is not None:
            content["raw"] = self.model.state_dict()
        with whole_file(path) as beside:
            torch.save(content, beside)

    def resume(self, path: str | os.PathLike[str]) -> None:
        """Continue from the checkpoint at `path`.

        Raises FileNotFoundError, or CheckpointError if it is damaged, not a checkpoint of training,
        or belongs to another recipe. After any error or interrupt, nothing has changed.
        """
        saved = read_progress(Path(path), self.recipe, self.model)
        loaded = adamw(self.model, self.recipe)
        load_optimizer(loaded, saved.optimizer, f"checkpoint {path}")
        average = {name: t.to(self.device, copy=True) for name, t in saved.average.items()}
        before = (self.optimizer.state, self.optimizer.param_groups, self._average, self.step)

        def set_progress(*progress: Any) -> None:
            optimizer = self.optimizer
            optimizer.state, optimizer.param_groups, self._average, self.step = progress

        undo = partial(set_progress, *before)
        with restored_on_error([*self.model.state_dict().values()], undo):
            self.model.load_state_dict(saved.weights)
            set_progress(loaded.state, loaded.param_groups, average or None, saved.step)

    def _mean_objects(self, batch: Batch) -> float:
        """Mean number of objects per process. Gradients are averaged over processes, too."""
        count = torch.tensor(float(batch.truth.shape[1]), device=self.device)
        if self._processes > 1:
            torch.distributed.all_reduce(count)
        return max(count.item() / self._processes, 1.0)

    def _wrap_model(self) -> Callable[..., Losses]:
        losses = _ClipLosses(self.model, self.recipe)
        return (
            DistributedDataParallel(losses, find_unused_parameters=True)
            if self._processes > 1
            else losses
        )

    def _kernels(self) -> AbstractContextManager[None]:
        # On CPUs the backward pass of torch's flash attention has a third of the speed of plain
        # matrix products at these sizes.
        return sdpa_kernel(SDPBackend.MATH) if self.device.type == "cpu" else nullcontext()

    @contextmanager
    def _seeded(self, step: int) -> Iterator[None]:
        """Draw what dropout drops from a seed of its own; the caller's generators are restored."""
        devices = [self.device] if self.device.type == "cuda" else []
        seeds = np.random.SeedSequence([self.recipe.seed, step, _DROPOUT, self._rank])
        seed = int(seeds.generate_state(1, np.uint64)[0] >> np.uint64(1))
        with torch.random.fork_rng(devices=devices):
            torch.default_generator.manual_seed(seed)
            for device in devices:
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(seed)
            yield


def draw_batch(recipe: Recipe, step: int, rank: int = 0, processes: int = 1) -> Batch:
    """The clips of one step for process `rank` of `processes`."""
    stage, _ = recipe.at(step)
    shares = np.array([source.share for source in stage.sources], dtype=np.float64)
    source: Source = stage.sources[
        int(
            np.random.default_rng([recipe.seed, step, _CLIPS]).choice(
                len(shares), p=shares / shares.sum()
            )
        )
    ]
    numbers = range(rank * source.batch, (rank + 1) * source.batch)
    seeds = [
        int(
            np.random.SeedSequence([recipe.seed, step, _CLIPS, number]).generate_state(
                1, np.uint64
            )[0]
        )
        for number in numbers
    ]
    return collate([source.clip(seed, stage.image_size) for seed in seeds])


class _Steps(Dataset[Batch]):
    """The batches of a recipe, by number of the step."""

    def __init__(self, recipe: Recipe, rank: int, processes: int) -> None:
        self._arguments = (rank, processes)
        self._recipe = recipe

    def __getitem__(self, step: int) -> Batch:
        return draw_batch(self._recipe, step, *self._arguments)


class _ClipLosses(nn.Module):
    """From clips to losses in one call, so that `DistributedDataParallel` can wrap it."""

    def __init__(self, model: Sam2, recipe: Recipe) -> None:
        super().__init__()
        self.model = model
        self._recipe = recipe

    def forward(
        self, batch: Batch, stage: Stage, rng: np.random.Generator, num_objects: float
    ) -> Losses:
        plan = draw_plan(rng, batch.images.shape[0], stage.annotator)
        # With autocast's cache of cast weights, the recomputation would differ from the first pass.
        recompute = self._recipe.recompute
        with torch.autocast(
            batch.images.device.type,
            torch.bfloat16,
            enabled=self._recipe.bfloat16,
            cache_enabled=not recompute,
        ):
            frames = simulate(self.model, batch, plan, rng, stage.annotator, recompute=recompute)
        return clip_losses(frames, batch.truth, num_objects, stage.losses)


def _at_size(model: Sam2, image_size: int, recipe: Recipe) -> Sam2:
    """A model for images of another size, with a recipe's dropout; it shares the parameters."""
    with torch.random.fork_rng(devices=[]):  # the initial weights are drawn and replaced
        other = Sam2(
            replace(
                model.config,
                image_size=image_size,
                dropout=recipe.dropout,
                drop_path_rate=recipe.drop_path,
            ),
            Options(dynamic_multimask_via_stability=False),
        ).to(model.device)
    other.load_state_dict(model.state_dict())
    for name, parameter in model.named_parameters():
        path, _, leaf = name.rpartition(".")
        setattr(other.get_submodule(path), leaf, parameter)
    return other.train()
