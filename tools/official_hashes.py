"""Hashes of the Python files of the official package, in all versions of its public history.

    python -m tools.official_hashes CLONE    a clone of github.com/facebookresearch/sam2

The table is stored next to `sam2_fast/compat/shim/copies.py`, which recognises copies of the
official package by it. It contains no code, only SHA-256 of files with normalised line ends.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections import defaultdict
from pathlib import Path

from sam2_fast.compat.shim.copies import HASHES, content_hash

REPOSITORY = "https://github.com/facebookresearch/sam2"
FOLDER = "sam2"


def git(clone: Path, *arguments: str) -> bytes:
    """The output of a git command."""
    return subprocess.run(
        ["git", "-C", str(clone), *arguments], check=True, capture_output=True
    ).stdout


def versions(clone: Path) -> dict[str, set[str]]:
    """Path below the package -> hashes of its versions, of all commits of the main branch."""
    table: dict[str, set[str]] = defaultdict(set)
    seen: set[str] = set()
    for commit in git(clone, "log", "--format=%H", "HEAD", "--", FOLDER).decode().split():
        listing = git(clone, "ls-tree", "-r", "-z", commit, "--", FOLDER).decode()
        for entry in filter(None, listing.split("\0")):
            header, path = entry.split("\t")
            blob = header.split()[2]
            if path.endswith(".py") and f"{blob} {path}" not in seen:
                seen.add(f"{blob} {path}")
                content = git(clone, "cat-file", "blob", blob)
                table[path[len(FOLDER) + 1 :]].add(content_hash(content))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clone", type=Path)
    clone = parser.parse_args().clone
    newest = git(clone, "log", "-1", "--format=%H %cs", "HEAD").decode().split()
    table = versions(clone)
    document = {
        "source": f"{REPOSITORY}, folder {FOLDER}/, all commits up to {newest[0]} ({newest[1]})",
        "made_by": "python -m tools.official_hashes CLONE",
        "hash": "SHA-256 of the file with line ends \\n",
        "files": {path: sorted(table[path]) for path in sorted(table)},
    }
    HASHES.write_text(json.dumps(document, indent=1) + "\n")
    print(f"{HASHES}: {len(table)} files, {sum(map(len, table.values()))} versions")


if __name__ == "__main__":
    main()
