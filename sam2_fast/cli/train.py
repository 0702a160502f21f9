"""`sam2-fast train CONFIG`: train a model by a recipe."""

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
            metavar="CONFIG",
            help="A training recipe as a JSON file; see docs/training.md.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Directory for weights, checkpoint and log. Default: <config name>_run.",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help=f"Continue from {CHECKPOINT} in the output directory.")
    ] = False,
    overwrite: o.Overwrite = False,
    every: Annotated[
        int,
        typer.Option("--every", min=1, metavar="STEPS", help="Steps between two checkpoints."),
    ] = 200,
    workers: Annotated[
        int, typer.Option("--workers", min=0, help="Processes that prepare clips in advance.")
    ] = 0,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also write TensorBoard events.")
    ] = False,
    device: o.Device = None,
    progress: o.Progress = None,
    json: o.AsJson = False,
) -> None:
    """Train or fine-tune a model. Under `torchrun`, every process trains on its own batch."""
    shown = sys.stderr.isatty() if progress is None else progress
    if resume and overwrite:
        raise ValueError("--overwrite and --resume: use only one of them")
    chosen = output or Path(f"{recipe.stem}_run")
    summary = Summary("train", recipe)
    losses = train_to(
        chosen,
        Recipe.load(recipe),
        device=o.chosen_device(device),
        resume=resume,
        overwrite=overwrite,
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
        f"trained: mean total loss of the last steps {losses['total']:.3g}; weights in "
        f"{chosen / WEIGHTS}",
    )
