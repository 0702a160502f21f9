"""Griffe extension of mkdocs.yml: docstrings of this package as Markdown.

A docstring here is a summary, prose, and lines of the form `name: shape, dtype, meaning`. Their
continuation lines are not indented. Each of these lines becomes an item of a list.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

ITEM = re.compile(r"^(`?[a-z_][\w.`]*(?:, `?[A-Za-z_][\w.`]*)*): (.+)$")


def as_markdown(text: str) -> str:
    """`text` with the lines that describe a name as list items."""
    lines: list[str] = []
    in_item = False
    for line in text.splitlines():
        match = ITEM.match(line)
        if match:
            if not in_item:
                lines.append("")
            names = ", ".join(f"`{name.strip('`')}`" for name in match[1].split(", "))
            lines.append(f"* {names}: {match[2]}")
            in_item = True
        elif in_item and line.strip():
            lines.append(f"  {line.strip()}")
        else:
            lines.append(line)
            in_item = False
    return "\n".join(lines)


class Docstrings(griffe.Extension):
    """Rewrites every docstring once, after its object has been loaded."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called by griffe for modules, classes, functions and attributes."""
        if obj.docstring is not None:
            summary, *rest = obj.docstring.value.split("\n\n", 1)
            parts = [as_markdown(summary), *(as_markdown(part) for part in rest)]
            obj.docstring.value = "\n\n".join(parts)
