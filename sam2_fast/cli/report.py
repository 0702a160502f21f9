"""How a command reports: results on stdout, errors as one line on stderr with an exit code.

Bad input never causes a traceback.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec

import torch
import typer

from sam2_fast.cli.signals import Interrupted, received_signals
from sam2_fast.io.json_files import to_json
from sam2_fast.ops.core.registry import BackendError
from sam2_fast.weights.hub import WeightsUnavailableError

BAD_INPUT = 2
NO_WEIGHTS = 3
INTERRUPTED = 130
OUT_OF_MEMORY = 1

P = ParamSpec("P")


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """Wrap a command: an error that the user can fix becomes one line on stderr.

    Defects of this package keep their traceback.
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            with received_signals():
                command(*args, **kwargs)
        except WeightsUnavailableError as error:
            fail(error, NO_WEIGHTS)
        except torch.OutOfMemoryError:
            fail(
                "out of device memory; try a smaller --size or --image-size, --dtype bfloat16, or "
                "--device cpu",
                OUT_OF_MEMORY,
            )
        except (
            ValueError,
            IndexError,
            OSError,
            ImportError,
            FloatingPointError,
            BackendError,
        ) as error:
            fail(error, BAD_INPUT)
        except Interrupted as error:
            fail(error, error.exit_code)
        except KeyboardInterrupt:
            fail("interrupted", INTERRUPTED)

    return run


def fail(message: object, code: int) -> None:
    """Print one line on stderr and exit with `code`."""
    typer.echo(f"error: {' '.join(str(message).split())}", err=True)
    raise typer.Exit(code)


def note(message: str) -> None:
    """Print a message on stderr."""
    typer.echo(message, err=True)


class Summary:
    """The result of a command, printed as text, or with --json as one JSON object on stdout."""

    def __init__(self, command: str, source: Path) -> None:
        self.facts: dict[str, Any] = {"command": command, "input": str(source)}
        self._files: list[str] = []
        self._started = time.perf_counter()

    def wrote(self, path: Path) -> None:
        """Record a file or directory that was written."""
        self._files.append(str(path))

    def show(self, as_json: bool, headline: str) -> None:
        """Print to stdout: the headline and the files, or everything as JSON."""
        if as_json:
            self.facts["files"] = self._files
            self.facts["seconds"] = round(time.perf_counter() - self._started, 3)
            typer.echo(to_json(self.facts))
            return
        typer.echo(headline)
        for path in self._files:
            typer.echo(f"  {path}")
