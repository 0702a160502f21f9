"""The house rules as tests: rooms, stems, budgets, and what a library never does."""

from __future__ import annotations

import ast
import re
import statistics
from pathlib import Path

import pytest

from tests.native_source import comma_operators, nested_conditionals, several_on_a_line
from tools import floor_plan

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "sam2_fast"
SOURCES = sorted(PACKAGE.rglob("*.py"))
TRITON = sorted((ROOT / "kernels").glob("*.py"))

MAX_ROOMS, MAX_FLOORS, MAX_FLAT = 27, 8, 12
STRANGERS = ("model", "memory", "io")
"""Rooms that keep to themselves: the model never remembers, the memory never computes, files are
only files.
"""
PROGRAMS = {"cli", "compat", "data", "doctor", "environment", "evaluation", "training"}
"""Rooms that use the library as its users do."""
MAX_LINES = 400
MAX_TEST_LINES = 400
MEDIAN_LINES = 140
DECODER = {
    "decoder_tokens",
    "decoder_layers",
    "decoder_step",
    "decoder_mlp",
    "decoder_heads",
    "mask_prediction",
    "object_heads",
}
"""Further Triton modules of the stem `mask_decoder`, which is too large for one file."""
SHARED = {"launch", "choices", "activations", "attention", "layer_norm", "linear"}
"""Triton modules that several stems use."""
PARTS = {"attention_forms", "convolution", "mask_bits", "memory_slots", "window_forms"}
"""Triton modules that are parts of one other."""
INFRASTRUCTURE = {
    "module",
    "tensor",
    "device_guard",
    "device",
    "tile",
    "dispatch",
    "simd",
    "fingerprint",
    *SHARED,
    *PARTS,
    *DECODER,
}
"""Native files and Triton modules that are no stem."""


def test_rooms_import_each_other_in_no_circle() -> None:
    found = floor_plan.circle(floor_plan.imports())
    assert not found, " -> ".join(found)


def test_the_house_stays_small() -> None:
    graph = floor_plan.imports()
    flat = [p.name for p in PACKAGE.glob("*.py") if p.name != "__init__.py"]
    assert len(graph) <= MAX_ROOMS, sorted(graph)
    assert len(floor_plan.floors(graph)) <= MAX_FLOORS
    assert len(flat) <= MAX_FLAT, flat


def test_the_page_shows_the_floor_plan() -> None:
    assert floor_plan.PAGE.read_text() == floor_plan.page(), "run `make generated`"


@pytest.mark.parametrize("room", STRANGERS)
def test_some_rooms_know_nothing_of_each_other(room: str) -> None:
    assert not set(floor_plan.imports()[room]) & set(STRANGERS)


def test_a_circle_is_found() -> None:
    assert floor_plan.circle({"a": {"b": 1}, "b": {"c": 1}, "c": {"a": 1}})
    assert floor_plan.circle({"a": {"b": 1}, "b": {}}) == []


def test_triton_kernels_know_nothing_of_the_package() -> None:
    assert not floor_plan.imports()["kernels"]
    for path in TRITON:
        foreign = re.findall(
            r"^\s*(?:from|import) sam2_fast(?!\.kernels\b).*", path.read_text(), re.M
        )
        assert not foreign, f"{path}: {foreign}"


def test_only_programs_import_public_names_from_the_package() -> None:
    """Other files import the module that defines them."""
    for path in floor_plan.files():
        if floor_plan.room_of(path) in PROGRAMS:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "sam2_fast":
                public = [a.name for a in node.names if a.name in floor_plan.public_names()]
                assert not public, f"{path}:{node.lineno}: {public}"


def test_native_code_is_free_of_torch_and_python() -> None:
    files = [p for p in (ROOT / "csrc").rglob("*") if p.suffix in {".h", ".cuh", ".cu", ".cpp"}]
    assert files
    for path in files:
        assert not re.search(
            r'#include\s*[<"](torch|ATen|c10|pybind11|Python\.h)', path.read_text()
        ), path


def is_there(path: Path) -> bool:
    """A file, or for `x.py` the package `x`."""
    return path.is_file() or (
        path.suffix == ".py" and (path.with_suffix("") / "__init__.py").is_file()
    )


def test_every_stem_is_whole() -> None:
    """The header says which devices the stem has launchers for; a kernel in CUDA has a Triton twin,
    one in Triton may be alone.
    """
    headers = {p.stem: p.read_text() for p in (ROOT / "csrc").glob("*.h")}
    always = [
        "bindings/{}.cpp",
        "sam2_fast/ops/{}.py",
        "tests/ops/test_{}.py",
        "benchmarks/{}.py",
        "docs/kernels/{}.md",
    ]
    by_device = {"cpu": ["csrc/cpu/{}.cpp"], "cuda": ["csrc/cuda/{}.cu", "kernels/{}.py"]}
    in_folder = {"cpu": ["csrc/cpu/{0}/{0}.cpp"], "cuda": by_device["cuda"]}
    expected = {place.format(stem) for stem in headers for place in always}
    for stem, header in headers.items():
        devices = [device for device in by_device if f"{stem}_{device}(" in header]
        assert devices, f"csrc/{stem}.h declares no launcher"
        places = in_folder if (ROOT / f"csrc/cpu/{stem}").is_dir() else by_device
        expected |= {place.format(stem) for device in devices for place in places[device]}
        expected |= {path for path in (f"kernels/{stem}.py",) if (ROOT / path).is_file()}
    # In Triton and torch only.
    alone = [p.stem for p in TRITON if p.stem not in headers and p.stem not in INFRASTRUCTURE]
    expected |= {place.format(stem) for stem in alone for place in (*always[1:], "kernels/{}.py")}
    assert not [place for place in expected if not is_there(ROOT / place)]
    native = [
        *(ROOT / "csrc").rglob("*.cu"),
        *(ROOT / "csrc").rglob("*.cpp"),
        *TRITON,
        *(ROOT / "bindings").glob("*.cpp"),
    ]
    orphans = [
        p
        for p in native
        if p.stem not in INFRASTRUCTURE and str(p.relative_to(ROOT)) not in expected
    ]
    assert not orphans, (
        "each native file belongs to a stem whose header in csrc/ declares its launcher"
    )
    listed = re.findall(
        r"set\(SAM2_FAST_(?:ISA_)?STEMS\s([^)]*)\)", (ROOT / "CMakeLists.txt").read_text()
    )
    assert set(" ".join(listed).split()) == set(headers)


NATIVE = sorted(
    p
    for d in ("csrc", "bindings")
    for p in (ROOT / d).rglob("*")
    if p.suffix in {".h", ".cuh", ".cu", ".cpp"}
)


@pytest.mark.parametrize("path", NATIVE, ids=lambda p: str(p.relative_to(ROOT)))
def test_native_code_is_one_statement_a_line(path: Path) -> None:
    source = path.read_text()
    assert not comma_operators(source), f"{path}: statements end in semicolons"
    assert not several_on_a_line(source), f"{path}: a statement has a line of its own"
    assert not nested_conditionals(source), f"{path}: a conditional expression has no other inside"


TEMPLATE = "affine"
"""The op to copy: docs/adding_a_kernel.md walks through its files."""
ITS_FILES = {
    "csrc/affine.h",
    "csrc/cpu/affine.cpp",
    "bindings/affine.cpp",
    "kernels/affine.py",
    "sam2_fast/ops/affine.py",
    "tests/ops/test_affine.py",
    "tests/ops/test_affine_triton.py",
    "benchmarks/affine.py",
    "docs/kernels/affine.md",
}
GENERATED = {"docs/status.md", "sam2_fast/ops/__init__.py"}
NAME_IT = {"docs/adding_a_kernel.md", "CHANGELOG.md", "tests/test_architecture.py"}
"""The walk through its files, what is new, and this test."""
TREE = (
    ".ci",
    "benchmarks",
    "bindings",
    "csrc",
    "docs",
    "examples",
    "experiments",
    "kernels",
    "sam2_fast",
    "tests",
    "tools",
)
TEXTS = {".cpp", ".cu", ".h", ".json", ".md", ".py", ".pyi", ".toml", ".txt", ".yaml"}


def test_an_op_edits_no_shared_file_but_the_list_of_stems() -> None:
    """The name of the template is in its own files, and on a line of its own in CMakeLists.txt."""
    everywhere = [*ROOT.iterdir(), *(p for d in TREE for p in (ROOT / d).rglob("*"))]
    files = [
        p
        for p in everywhere
        if (p.suffix in TEXTS or p.name in ("Makefile", "run")) and p.is_file()
    ]
    found = {str(p.relative_to(ROOT)) for p in files if re.search("[Aa]ffine", p.read_text())}
    assert found - NAME_IT - GENERATED == ITS_FILES | {"CMakeLists.txt"}
    named = [
        line
        for line in (ROOT / "CMakeLists.txt").read_text().splitlines()
        if TEMPLATE in line and not line.startswith("#")
    ]
    assert [line.strip() for line in named] == [TEMPLATE], "a line of the list of stems"


def lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def test_files_stay_readable() -> None:
    everywhere = [
        p
        for d in ("sam2_fast", "csrc", "bindings", "kernels", "tests", "benchmarks", "tools")
        for p in (ROOT / d).rglob("*")
    ]
    code = [p for p in everywhere if p.suffix in {".py", ".cpp", ".cu", ".h", ".cuh"}]
    assert not {
        str(p.relative_to(ROOT)): lines(p)
        for p in code
        if lines(p) > (MAX_TEST_LINES if "tests" in p.parts else MAX_LINES)
    }
    assert statistics.median(lines(p) for p in SOURCES) <= MEDIAN_LINES


def is_reraised(handler: ast.ExceptHandler) -> bool:
    last = handler.body[-1]
    return isinstance(last, ast.Raise) and last.exc is None


@pytest.mark.parametrize("path", [*SOURCES, *TRITON], ids=lambda p: str(p.relative_to(ROOT)))
def test_what_a_library_never_does(path: Path) -> None:
    at_home = path.is_relative_to(PACKAGE / "cli")
    for node in ast.walk(ast.parse(path.read_text())):
        where = f"{path}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.ExceptHandler):
            broad = node.type is None or (
                isinstance(node.type, ast.Name) and node.type.id in {"Exception", "BaseException"}
            )
            assert not broad or is_reraised(node), f"{where}: swallows every exception"
        if isinstance(node, ast.Call) and not at_home:
            called = ast.unparse(node.func)
            assert called != "print", f"{where}: a library does not print"
            assert not re.match(r"torch\.(set_|use_deterministic|cuda\.set_|backends\.)", called), (
                f"{where}: {called} is the caller's choice"
            )
        if isinstance(node, (ast.Assign, ast.AugAssign)) and not at_home:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                assert not ast.unparse(target).startswith("torch.backends."), (
                    f"{where}: a global setting is the caller's choice"
                )


@pytest.mark.parametrize("path", TRITON, ids=lambda p: p.stem)
def test_kernels_are_launched_by_keyword_and_say_what_they_take(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Subscript)
            and ast.unparse(node.func.value).endswith("_kernel")
        ):
            assert not node.args, f"{path}:{node.lineno}: pass arguments to a kernel by keyword"
        if isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel"):
            said = ast.get_docstring(node) or ""
            runtime = [a.arg for a in node.args.args if a.annotation is None]
            unsaid = [name for name in runtime if not re.search(rf"\b{name}\b", said)]
            assert not unsaid, f"{path}:{node.lineno}: the docstring says nothing of {unsaid}"
