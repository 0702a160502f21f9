"""Programs that run unchanged, for docs/migration.md: `python -m tools.program_table [--write]`.

The rows are the scripts of tests/third_party/idioms, which tests/compat/test_idioms.py runs with
this package and the official one, and the refusals that tests require. A test checks that the page
is current.
"""

from __future__ import annotations

import ast
import html
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

from tests.compat import test_idioms
from tests.third_party.programs import PROGRAMS, REFUSALS
from tools import generated

PAGE = Path(__file__).resolve().parent.parent / "docs" / "migration.md"
BEGIN = "<!-- begin of the table, made by `python -m tools.program_table --write` -->\n"
END = "<!-- end of the table -->\n"


def page() -> str:
    """The text of the page with the present table."""
    before, rest = PAGE.read_text().split(BEGIN)
    _, after = rest.split(END)
    return before + BEGIN + "\n" + table() + "\n" + END + after


def table() -> str:
    """A row for each use of each class of programs, in HTML, which allows several lines a row."""
    lines = ["<table>", "<tr><th>program</th><th>use</th><th>result</th></tr>"]
    for program, scripts in PROGRAMS.items():
        uses = [*_equal(scripts), *_refused(program)]
        for i, (use, result) in enumerate(uses):
            lines.append("<tr>")
            if i == 0:
                lines += _cell(program, f'<td rowspan="{len(uses)}">')
            lines += [*_cell(use), *_cell(result), "</tr>"]
    return "\n".join([*lines, "</table>"]) + "\n"


def _cell(text: str, start: str = "<td>") -> list[str]:
    """A cell, in lines of at most 90 columns; `code` becomes an element."""
    code = re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))
    return textwrap.wrap(f"{start}{code}</td>", 90, break_on_hyphens=False)


def _equal(scripts: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for script in scripts:
        docstring = ast.get_docstring(ast.parse((test_idioms.FOLDER / f"{script}.py").read_text()))
        assert docstring is not None, script
        yield docstring.splitlines()[0].removesuffix("."), _tolerance(script)


def _tolerance(script: str) -> str:
    bounds = [
        value
        for name, value in test_idioms.RELATIVES.items()
        if name.partition("/")[0] == script and value > test_idioms.RELATIVE
    ]
    return f"equal, relative error below {max(bounds):g}" if bounds else "equal"


def _refused(program: str) -> Iterator[tuple[str, str]]:
    for refusal in REFUSALS:
        if refusal.program == program:
            yield refusal.use.removesuffix("."), f"refused: {refusal.reason}"


if __name__ == "__main__":
    sys.exit(generated.main(__doc__, PAGE, page))
