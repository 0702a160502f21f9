"""The eight commands of `sam2-fast`."""

from __future__ import annotations

import typer

from sam2_fast.cli.doctor import doctor
from sam2_fast.cli.evaluate import evaluate
from sam2_fast.cli.everything import everything
from sam2_fast.cli.info import info
from sam2_fast.cli.segment import segment
from sam2_fast.cli.simulate import simulate
from sam2_fast.cli.track import track
from sam2_fast.cli.train import train

app = typer.Typer(
    name="sam2-fast",
    help="SAM 2 for images and videos. Coordinates are pixels from the top left corner, x before "
    "y.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(segment)
app.command()(track)
app.command()(everything)
app.command()(evaluate)
app.command()(simulate)
app.command()(train)
app.command()(info)
app.command()(doctor)
