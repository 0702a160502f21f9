"""Rules of the architecture: imports between rooms, files of stems, file sizes, forbidden calls.

A room is a module or a folder directly in `sam2_fast/`, or `kernels/` (docs/architecture.md). A
stem is the common name of the files of an op (docs/adding_a_kernel.md).
"""

from __future__ import annotations

import ast
import re
import statistics
from pathlib import Path

import pytest

from tests.native_source import comma_operators, nested_conditionals, several_statements_on_a_line
from tools import floor_plan

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "sam2_fast"
SOURCES = sorted(PACKAGE.rglob("*.py"))
TRITON = sorted((ROOT / "kernels").glob("*.py"))

MAX_ROOMS = 27
MAX_FLOORS = 8
MAX_MODULES = 12
INDEPENDENT = ("model", "memory", "io")
"""Rooms that do not import each other."""
PROGRAMS = {"cli", "compat", "data", "doctor", "environment", "evaluation", "training"}
"""Rooms that use the public names of the library, as its users do."""
MAX_LINES = 400
MEDIAN_LINES = 140
DECODER = {
    *("decoder_tokens", "decoder_layers", "decoder_step", "decoder_mlp", "decoder_heads"),
    *("mask_prediction", "object_heads"),
}
"""Further Triton modules of the stem `mask_decoder`, which is too large for one file."""
SHARED = {"launch", "choices", "activations", "attention", "layer_norm", "linear"}
"""Triton modules that several stems use."""
PARTS = {"attention_forms", "convolution", "mask_bits", "memory_slots", "window_forms"}
"""Triton modules that are part of one other module."""
INFRASTRUCTURE = {
    *("module", "tensor", "device_guard", "device", "tile", "dispatch", "simd", "fingerprint"),
    *SHARED,
    *PARTS,
    *DECODER,
}
"""Native files and Triton modules that do not belong to a stem."""


def test_imports_between_rooms_have_no_circle() -> None:
    circle = floor_plan.circle(floor_plan.imports())
    assert not circle, " -> ".join(circle)


def test_the_numbers_of_rooms_and_floors_are_limited() -> None:
    graph = floor_plan.imports()
    modules = [p.name for p in PACKAGE.glob("*.py") if p.name != "__init__.py"]
    assert len(graph) <= MAX_ROOMS, sorted(graph)
    assert len(floor_plan.floors(graph)) <= MAX_FLOORS
    assert len(modules) <= MAX_MODULES, modules


def test_the_page_shows_the_floor_plan() -> None:
    assert floor_plan.PAGE.read_text() == floor_plan.page(), "run `make generated`"


@pytest.mark.parametrize("room", INDEPENDENT)
def test_model_memory_and_files_do_not_import_each_other(room: str) -> None:
    assert not set(floor_plan.imports()[room]) & set(INDEPENDENT)


def test_a_circle_is_detected() -> None:
    assert floor_plan.circle({"a": {"b": 1}, "b": {"c": 1}, "c": {"a": 1}})
    assert floor_plan.circle({"a": {"b": 1}, "b": {}}) == []


def test_triton_kernels_do_not_import_the_package() -> None:
    assert not floor_plan.imports()["kernels"]
    package_import = re.compile(r"^\s*(?:from|import) sam2_fast(?!\.kernels\b).*", re.MULTILINE)
    for path in TRITON:
        imports = package_import.findall(path.read_text())
        assert not imports, f"{path}: {imports}"


def test_only_programs_import_public_names_from_the_package() -> None:
    """Other files import the modules that define these names."""
    for path in floor_plan.files():
        if floor_plan.room_of(path) in PROGRAMS:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "sam2_fast":
                public = [a.name for a in node.names if a.name in floor_plan.public_names()]
                assert not public, f"{path}:{node.lineno}: {public}"


NATIVE_SUFFIXES = {".h", ".cuh", ".cu", ".cpp"}


def files_below(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*"))


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_native_code_does_not_include_torch_or_python() -> None:
    files = [p for p in files_below("csrc") if p.suffix in NATIVE_SUFFIXES]
    assert files
    include = re.compile(r'#include\s*[<"](torch|ATen|c10|pybind11|Python\.h)')
    for path in files:
        assert not include.search(path.read_text()), path


def exists(path: Path) -> bool:
    """Whether the file exists, or for `x.py` the package `x`."""
    package = path.with_suffix("") / "__init__.py"
    return path.is_file() or (path.suffix == ".py" and package.is_file())


def test_every_stem_has_all_its_files() -> None:
    """The header declares a launcher for each device of the stem.

    A stem with a CUDA kernel also has one in Triton; a Triton kernel may have none in CUDA.
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
    expected = {pattern.format(stem) for stem in headers for pattern in always}
    for stem, header in headers.items():
        devices = [device for device in by_device if f"{stem}_{device}(" in header]
        assert devices, f"csrc/{stem}.h declares no launcher"
        patterns = in_folder if (ROOT / f"csrc/cpu/{stem}").is_dir() else by_device
        expected |= {pattern.format(stem) for device in devices for pattern in patterns[device]}
        expected |= {path for path in (f"kernels/{stem}.py",) if (ROOT / path).is_file()}
    triton_only = [p.stem for p in TRITON if p.stem not in headers and p.stem not in INFRASTRUCTURE]
    patterns_of_triton = (*always[1:], "kernels/{}.py")
    expected |= {pattern.format(stem) for stem in triton_only for pattern in patterns_of_triton}
    assert not [path for path in expected if not exists(ROOT / path)]
    native = [p for p in files_below("csrc", "bindings") if p.suffix in (".cu", ".cpp")]
    names = {relative(p) for p in (*native, *TRITON) if p.stem not in INFRASTRUCTURE}
    message = "each native file belongs to a stem whose header in csrc/ declares its launcher"
    assert not names - expected, message
    cmake = (ROOT / "CMakeLists.txt").read_text()
    lists = re.findall(r"set\(SAM2_FAST_(?:ISA_)?STEMS\s([^)]*)\)", cmake)
    assert set(" ".join(lists).split()) == set(headers)


NATIVE = [p for p in files_below("csrc", "bindings") if p.suffix in NATIVE_SUFFIXES]


@pytest.mark.parametrize("path", NATIVE, ids=relative)
def test_native_code_has_one_statement_a_line(path: Path) -> None:
    source = path.read_text()
    assert not comma_operators(source), f"{path}: statements end in semicolons"
    assert not several_statements_on_a_line(source), f"{path}: write one statement a line"
    assert not nested_conditionals(source), f"{path}: do not nest conditional expressions"


TEMPLATE = "affine"
"""The op to copy: docs/adding_a_kernel.md explains its files."""
TEMPLATE_FILES = {
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
REFERENCES = {"docs/adding_a_kernel.md", "CHANGELOG.md", "tests/test_architecture.py"}
"""Files that refer to the template by name."""
TEMPLATE_NAME = re.compile("(?<!Random)[Aa]ffine")
"""`RandomAffine` is a transform in the official training configuration."""
FOLDERS = (
    *(".ci", "benchmarks", "bindings", "csrc", "docs", "examples", "experiments"),
    *("kernels", "sam2_fast", "tests", "tools"),
)
TEXT_SUFFIXES = {".cpp", ".cu", ".h", ".json", ".md", ".py", ".pyi", ".toml", ".txt", ".yaml"}


def is_text(path: Path) -> bool:
    return path.is_file() and (path.suffix in TEXT_SUFFIXES or path.name in ("Makefile", "run"))


def test_the_list_of_stems_is_the_only_shared_file_that_an_op_changes() -> None:
    """The name of the template is in its own files, and on one line of CMakeLists.txt."""
    files = [path for path in (*ROOT.iterdir(), *files_below(*FOLDERS)) if is_text(path)]
    with_name = {relative(path) for path in files if TEMPLATE_NAME.search(path.read_text())}
    assert with_name - REFERENCES - GENERATED == TEMPLATE_FILES | {"CMakeLists.txt"}
    cmake_lines = [
        line.strip()
        for line in (ROOT / "CMakeLists.txt").read_text().splitlines()
        if TEMPLATE in line and not line.startswith("#")
    ]
    assert cmake_lines == [TEMPLATE], "a line of the list of stems"


def line_count(path: Path) -> int:
    return len(path.read_text().splitlines())


def test_files_are_short() -> None:
    folders = ("sam2_fast", "csrc", "bindings", "kernels", "tests", "benchmarks", "tools")
    code = [p for p in files_below(*folders) if p.suffix in {".py", *NATIVE_SUFFIXES}]
    assert not {relative(p): line_count(p) for p in code if line_count(p) > MAX_LINES}
    assert statistics.median(line_count(p) for p in SOURCES) <= MEDIAN_LINES


def is_reraised(handler: ast.ExceptHandler) -> bool:
    last = handler.body[-1]
    return isinstance(last, ast.Raise) and last.exc is None


def is_broad(handler: ast.ExceptHandler) -> bool:
    return handler.type is None or ast.unparse(handler.type) in {"Exception", "BaseException"}


SETTING = re.compile(r"torch\.(set_|use_deterministic|cuda\.set_|backends\.)")


@pytest.mark.parametrize("path", [*SOURCES, *TRITON], ids=relative)
def test_a_library_does_not_print_change_settings_or_hide_errors(path: Path) -> None:
    in_command_line = path.is_relative_to(PACKAGE / "cli")
    for node in ast.walk(ast.parse(path.read_text())):
        position = f"{path}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.ExceptHandler):
            assert not is_broad(node) or is_reraised(node), f"{position}: hides every exception"
        if isinstance(node, ast.Call) and not in_command_line:
            function = ast.unparse(node.func)
            assert function != "print", f"{position}: a library does not print"
            assert not SETTING.match(function), f"{position}: {function} is the caller's choice"
        if isinstance(node, (ast.Assign, ast.AugAssign)) and not in_command_line:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in map(ast.unparse, targets):
                assert not target.startswith("torch.backends."), f"{position}: a global setting"


@pytest.mark.parametrize("path", TRITON, ids=lambda p: p.stem)
def test_kernels_are_launched_by_keyword_and_document_their_arguments(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Subscript)
            and ast.unparse(node.func.value).endswith("_kernel")
        ):
            assert not node.args, f"{path}:{node.lineno}: pass arguments to a kernel by keyword"
        if isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel"):
            docstring = ast.get_docstring(node) or ""
            arguments = [a.arg for a in node.args.args if a.annotation is None]
            missing = [name for name in arguments if not re.search(rf"\b{name}\b", docstring)]
            assert not missing, f"{path}:{node.lineno}: the docstring lacks {missing}"
