"""The eight commands of `sam2-fast`."""

from __future__ import annotations

from typing import Annotated

import typer

from sam2_fast import __version__
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


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"sam2-fast {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Print the version, and exit."
        ),
    ] = False,
) -> None:
    """Options before the command."""


app.command()(segment)
app.command()(track)
app.command()(everything)
app.command()(evaluate)
app.command()(simulate)
app.command()(train)
app.command()(info)
app.command()(doctor)
