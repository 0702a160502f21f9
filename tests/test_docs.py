"""Every Python example in the documents runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", [p for p in PAGES if BLOCK.search(p.read_text())], ids=lambda p: p.stem)
def test_the_examples_of_a_page_run(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    names: dict[str, Any] = {}
    for block in BLOCK.findall(page.read_text()):
        exec(compile(block, str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


EXCERPT = re.compile(r"^```(?:py|cpp)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def test_excerpts_of_the_walk_through_are_those_of_the_files() -> None:
    """An excerpt is of the file that is named last before it."""
    page = (ROOT / "docs" / "adding_a_kernel.md").read_text()
    found = list(EXCERPT.finditer(page))
    assert len(found) >= 5
    for excerpt in found:
        path = re.findall(r"`([\w/]+/(?:affine|test_affine)\.\w+)`", page[: excerpt.start()])[-1]
        assert excerpt[1] in (ROOT / path).read_text(), f"{path}:\n{excerpt[1]}"
