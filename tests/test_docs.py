"""Examples in the documents run, links have targets, and quoted code is in the sources."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from tools.docs_hooks import listed_packages

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
def test_links_between_pages_have_targets(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


QUOTED = re.compile(r"^```(?:py|cpp|cmake)\n(.*?)^```", re.DOTALL | re.MULTILINE)
SOURCES = [
    p
    for d in ("sam2_fast/ops", "kernels", "csrc", "bindings", "tests/ops", "benchmarks")
    for p in (ROOT / d).rglob("*.*")
]


def quotes(block: str, source: str) -> bool:
    """Whether the lines of a block are in a source in this order.

    A line `# ...` stands for lines that the block omits.
    """
    position = 0
    for part in re.split(r"^ *# \.\.\.\n", block, flags=re.MULTILINE):
        position = source.find(part, position)
        if position < 0:
            return False
        position += len(part)
    return True


def test_quoted_code_is_in_the_sources() -> None:
    blocks = QUOTED.findall((ROOT / "docs" / "adding_a_kernel.md").read_text())
    sources = [
        p.read_text()
        for p in (*SOURCES, ROOT / "CMakeLists.txt")
        if p.suffix in {".py", ".h", ".cpp", ".txt"}
    ]
    assert len(blocks) > 8
    assert not [block for block in blocks if not any(quotes(block, source) for source in sources)]
    assert quotes("a\n# ...\nc\n", "a\nb\nc\n") and not quotes("c\n# ...\na\n", "a\nb\nc\n")


def test_the_readme_shows_the_same_lines_with_nano_and_with_a_released_model() -> None:
    text = (ROOT / "README.md").read_text()
    (nano,) = BLOCK.findall(text)
    (released,) = re.findall(r"^```py\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert released == nano.replace('"nano"', '"facebook/sam2.1-hiera-large"')
    assert len([line for line in nano.splitlines() if line.strip()]) == 6


def test_the_chart_has_the_numbers_of_the_results() -> None:
    chart = pytest.importorskip("tools.pictures.chart", reason="the chart needs matplotlib")
    for theme in ("light", "dark"):
        drawn = (ROOT / "docs" / "assets" / f"speed-{theme}.svg").read_text()
        for bar in chart.bars():
            assert bar.caption() in drawn and bar.text in drawn
        assert chart.machine_text() in drawn


def test_the_status_in_the_readme_is_that_of_now() -> None:
    from tools import readme

    assert (ROOT / "README.md").read_text() == readme.page()


@pytest.mark.parametrize("package", listed_packages())
def test_public_names_and_their_methods_have_docstrings(package: str) -> None:
    module = importlib.import_module(package)
    missing = []
    for name in module.__all__:
        value = getattr(module, name)
        if not callable(value):
            continue
        if not inspect.getdoc(value):
            missing.append(name)
        methods = vars(value) if inspect.isclass(value) else {}
        missing += [
            f"{name}.{method}"
            for method, function in methods.items()
            if not method.startswith("_")
            and inspect.isfunction(function)
            and not inspect.getdoc(function)
        ]
    assert not missing, missing


def test_every_document_is_in_the_navigation_of_the_site() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text()
    pages = [str(p.relative_to(ROOT / "docs")) for p in (ROOT / "docs").rglob("*.md")]
    assert not [page for page in pages if f": {page}\n" not in navigation]


def test_rows_of_the_robustness_table_that_tests_cite_exist() -> None:
    table = (ROOT / "docs" / "robustness.md").read_text()
    rows = {int(number) for number in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)}
    assert rows == set(range(1, 41))
    for page in ("tests/video/test_bad_input.py", "tests/test_checkpoint.py"):
        cited = re.findall(r"\brows?[_ ](\d+)", (ROOT / page).read_text())
        assert cited and {int(number) for number in cited} <= rows
