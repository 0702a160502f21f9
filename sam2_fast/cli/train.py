"""`sam2-fast train CONFIG`: from a recipe to weights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from sam2_fast.cli import options as o
from sam2_fast.cli.report import Summary, guarded
from sam2_fast.training import Recipe
from sam2_fast.training.run import CHECKPOINT, WEIGHTS, train_to


@guarded
def train(
    recipe: Annotated[
        Path,
        typer.Argument(
            metavar="CONFIG", help="A recipe as JSON; see docs/training.md.", show_default=False
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Where weights, checkpoint and log go. Default: <name>_run.",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help=f"Go on from the output's {CHECKPOINT}.")
    ] = False,
    every: Annotated[
        int,
        typer.Option("--every", min=1, metavar="STEPS", help="How often a checkpoint is written."),
    ] = 200,
    workers: Annotated[
        int, typer.Option("--workers", min=0, help="Processes that prepare clips ahead.")
    ] = 0,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write TensorBoard events, too.")
    ] = False,
    device: o.Device = None,
    progress: o.Progress = None,
    json: o.AsJson = False,
) -> None:
    """Train a model, or fine-tune one. Under `torchrun` every process takes a batch of its own."""
    shown = sys.stderr.isatty() if progress is None else progress
    chosen = output or Path(f"{recipe.stem}_run")
    summary = Summary("train", recipe)
    losses = train_to(
        chosen,
        Recipe.load(recipe),
        device=device,
        resume=resume,
        every=every,
        workers=workers,
        tensorboard=tensorboard,
        progress=shown,
    )
    summary.facts |= {"output": str(chosen), **losses}
    for name in (CHECKPOINT, WEIGHTS):
        summary.wrote(chosen / name)
    summary.show(
        json,
        f"trained: total loss {losses['total']:.3g} over the last steps; weights in "
        f"{chosen / WEIGHTS}",
    )
