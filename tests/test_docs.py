"""Every Python example in the documents runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize(
    "page", [p for p in PAGES if BLOCK.search(p.read_text())], ids=lambda p: p.stem
)
def test_the_examples_of_a_page_run(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    names: dict[str, Any] = {}
    for block in BLOCK.findall(page.read_text()):
        exec(compile(block, str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


QUOTED = re.compile(r"^```(?:py|cpp|cmake)\n(.*?)^```", re.DOTALL | re.MULTILINE)
SOURCES = [
    p
    for d in ("sam2_fast/ops", "kernels", "csrc", "bindings", "tests/ops", "benchmarks")
    for p in (ROOT / d).rglob("*.*")
]


def quotes(block: str, source: str) -> bool:
    """Whether the lines of a block stand in a source in this order; `# ...` on a line of its own is
    what was left out.
    """
    place = 0
    for part in re.split(r"^ *# \.\.\.\n", block, flags=re.MULTILINE):
        place = source.find(part, place)
        if place < 0:
            return False
        place += len(part)
    return True


def test_code_that_a_page_quotes_is_in_the_source() -> None:
    blocks = QUOTED.findall((ROOT / "docs" / "adding_a_kernel.md").read_text())
    sources = [
        p.read_text()
        for p in (*SOURCES, ROOT / "CMakeLists.txt")
        if p.suffix in {".py", ".h", ".cpp", ".txt"}
    ]
    assert len(blocks) > 8
    assert not [block for block in blocks if not any(quotes(block, source) for source in sources)]
    assert quotes("a\n# ...\nc\n", "a\nb\nc\n") and not quotes("c\n# ...\na\n", "a\nb\nc\n")
