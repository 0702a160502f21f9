"""The command line of modules that generate a file from the sources."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path


def main(description: str | None, path: Path, content: Callable[[], str]) -> int:
    """Print the text of a generated file, or write it with --write. Returns the exit status.

    content: returns the whole text of the file `path`.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help=f"write {path.name}")
    if parser.parse_args().write:
        path.write_text(content())
    else:
        print(content(), end="")
    return 0
