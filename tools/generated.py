"""Files that follow from the sources: print what should be in one, or write it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path


def main(description: str | None, path: Path, content: Callable[[], str]) -> int:
    """The command line of a module that makes `content`, the whole text of the file `path`."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help=f"write {path.name}")
    if parser.parse_args().write:
        path.write_text(content())
    else:
        print(content(), end="")
    return 0
