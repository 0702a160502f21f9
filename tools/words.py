"""The glossary of docs/style.md as patterns: finds the words that it replaces.

    python -m tools.words                every occurrence, and a table of their numbers
    python -m tools.words --only PATH    only occurrences in files below this path
    python -m tools.words --tree DIR     the same for another checkout, for example an older commit

`tests/test_words.py` asserts that there is no occurrence.
"""

from __future__ import annotations

import argparse
import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
CODE = (".py", ".cpp", ".h", ".cu", ".cuh")
PAGES = (".md",)
# These two files contain the words that they forbid.
EXEMPT = ("tools/words.py", "docs/style.md")


@dataclass(frozen=True)
class Entry:
    """Words to avoid, and what to write instead."""

    instead: str
    names: str = ""  # pattern of whole identifiers that a file binds
    phrases: str = ""  # pattern of text
    folders: tuple[str, ...] = ()  # empty: all folders


GLOSSARY = (
    Entry("rotate, rotated, project_and_rotate_queries", r"turns?|turned(_\w+)?|\w+_turned"),
    Entry("mean and rstd", r"(\w+_)?[Mm]oments(_\w+)?"),
    Entry("rstd, rescale", r"shrink"),
    Entry("weight, bias", r"gains?"),
    Entry("update_online_softmax", r"soften"),
    Entry("pointer tokens", r"loose"),
    Entry("CUDA graph, side stream, event, wait, lock", r"Lane|lane|marks?|join_lane"),
    Entry("Cache, AutocastWeightCache, _insert, _seen_shapes", r"Kept|Narrowing|_keep|_?met"),
    Entry(
        "token-to-image attention, image-to-token attention, upscale and predict masks",
        r"looks?|looked|take|paint(ed)?",
    ),
    Entry("hypernetwork outputs", r"brush(es)?"),
    Entry(
        "self_attention_phase, cross_attention_phase; barrier",
        r"meet_\w+",
        r"threads? (?:\w+ )?meets?\b|\bthey meet\b",
    ),
    Entry("memory_dim, dim; the dtype", r"narrow|wide"),
    Entry("compute dtype", phrases=r"dtype of (?:the )?products|products' dtype"),
    Entry(
        "host synchronisation, device-to-host copy",
        phrases=r"looks? at a number|numbers? cross(?:es)?\b|nothing crosses|crosses to the host",
    ),
    Entry(
        "output, inputs, batch, query_mask, key_mask and other nouns",
        r"found|given|made|some|mine|theirs|there|inside|outside|wanted|told|said|asked|taken|held",
    ),
    Entry("position, index, slot, address, location", r"places?"),
    Entry(
        "running_max, running_sum, accumulator",
        r"high|total|sum_",
        folders=("kernels", "csrc"),
    ),
    Entry("inputs require grad; inference-only", phrases=r"gradients? (?:is|are) wanted"),
    Entry("or None", phrases=r"None where (?:there )?(?:is|are)|None where it"),
    Entry("bit-exact, bitwise equal", phrases=r"to the bit\b|bit (?:for|by) bit"),
    Entry(
        "a noun: the thread, the caller, the tensor",
        # "who" in quotes is a key of the committed results of benchmarks.
        phrases=r"(?<!\")\b(?:who|whose|whom|whoever|nobody|somebody|someone|anybody|anyone|mine"
        r"|theirs)\b",
        folders=("sam2_fast", "kernels", "csrc", "bindings", "benchmarks", "tools"),
    ),
    Entry(
        "if, when",
        phrases=r"\bwhere (?:there|it|they|one|none|no|nothing|that|this|all|neither|both|only"
        r"|not)\b",
    ),
)


@dataclass(frozen=True)
class Hit:
    entry: Entry
    path: str
    line: int
    text: str


def sources(tree: Path) -> Iterator[tuple[str, str]]:
    """Path relative to `tree` and text of every tracked or new file that git does not ignore."""
    command = ["git", "-C", str(tree), "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for name in sorted(names.splitlines()):
        path = tree / name
        if path.suffix in CODE + PAGES and name not in EXEMPT and path.exists():
            yield name, path.read_text()


def python_names(text: str) -> Iterator[tuple[str, int]]:
    """Names that a Python file binds, with line numbers."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno


def native_names(text: str) -> Iterator[tuple[str, int]]:
    """C++ identifiers outside comments and strings, without qualified names and members."""
    skipped = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"', re.DOTALL)
    blank = skipped.sub(lambda m: re.sub(r"[^\n]", " ", m[0]), text)
    for match in re.finditer(r"(?<![\w.>:])[A-Za-z_]\w*", blank):
        yield match[0], blank.count("\n", 0, match.start()) + 1


def hits(tree: Path) -> Iterator[Hit]:
    """Every occurrence in the files of `tree`."""
    for name, text in sources(tree):
        if name.endswith(".py"):
            names = list(python_names(text))
        else:
            names = [] if name.endswith(PAGES) else list(native_names(text))
        lines = text.splitlines()
        for entry in GLOSSARY:
            if entry.folders and not name.startswith(tuple(f"{f}/" for f in entry.folders)):
                continue
            if entry.names:
                for bound, line in names:
                    if re.fullmatch(entry.names, bound):
                        yield Hit(entry, name, line, bound)
            if entry.phrases:
                for match in re.finditer(
                    entry.phrases.replace(" ", r"[\s#/*]+"), text, re.IGNORECASE
                ):
                    line = text.count("\n", 0, match.start()) + 1
                    yield Hit(entry, name, line, lines[line - 1].strip())


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Returns the exit status: 1 if there are occurrences."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--tree", type=Path, default=ROOT, help="checkout to search")
    parser.add_argument("--only", default="", help="only occurrences in files below this path")
    options = parser.parse_args(arguments)
    occurrences = [hit for hit in hits(options.tree) if hit.path.startswith(options.only)]
    for hit in occurrences:
        print(f"{hit.path}:{hit.line}: {hit.text}")
    print("\n| instead of | write | occurrences |\n|---|---|---|")
    for entry in GLOSSARY:
        patterns = "; ".join(p.replace("|", "\\|") for p in (entry.names, entry.phrases) if p)
        count = sum(hit.entry is entry for hit in occurrences)
        print(f"| `{patterns}` | {entry.instead} | {count} |")
    return 1 if occurrences else 0


if __name__ == "__main__":
    sys.exit(main())
