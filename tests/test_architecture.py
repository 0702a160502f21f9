"""The house rules as tests: floors, stems, budgets, and what a library never does."""

from __future__ import annotations

import ast
import re
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.native_source import comma_operators, nested_conditionals, several_on_a_line

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "sam2_fast"
SOURCES = sorted(PACKAGE.rglob("*.py"))
TRITON = sorted((ROOT / "kernels").glob("*.py"))

FLOORS: dict[int, tuple[str, ...]] = {
    1: ("kernels",),
    2: ("_C", "atomic", "types", "config"),
    3: ("ops", "proving"),
    4: ("model", "memory", "io"),
    5: ("session", "masks"),
    6: (
        "ahead", "checkpoint", "click_sampling", "fingerprint", "frame_graph", "graphs", "hf_keys", "hub", "official_config",
        "official_steps", "tracker",
    ),
    7: (
        "amg", "build_sam", "camera_predictor", "image_predictor", "image_prompts", "inference_state", "mask_generator",
        "prompts", "sam2_base", "sam2_transforms", "video_predictor",
    ),
    8: ("cli", "compat", "data", "doctor", "environment", "evaluation", "info", "serve", "training"),
}  # fmt: skip
"""Rooms, from the ground up. A room may use any lower floor; `APART` says which floors' rooms keep to themselves."""
FLOOR = {room: floor for floor, rooms in FLOORS.items() for room in rooms}
APART = {4}  # the model never remembers, the memory never computes, files are only files
MAX_LINES = 350
MAX_TEST_LINES = 400
MEDIAN_LINES = 140
DECODER = {"decoder_tokens", "decoder_mlp", "decoder_heads", "object_heads"}
"""Further Triton modules of the stem `mask_decoder`, which is too large for one file."""
INFRASTRUCTURE = {
    "module", "tensor", "device_guard", "device", "tile", "dispatch", "simd", "fingerprint", "launch", "choices", "linear", *DECODER,
}  # fmt: skip
"""Native files and Triton modules that are no stem."""


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path: Path) -> Iterator[str]:
    """Rooms of this package that a file imports, wherever in the file; "" for a name of the package itself."""
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "sam2_fast" else [module]
        for name in names:
            if name.split(".")[0] == "sam2_fast":
                room = name.split(".")[1] if "." in name else ""
                yield room if room in FLOOR else ""


@pytest.mark.parametrize("path", [p for p in SOURCES if p != PACKAGE / "__init__.py"], ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_file_knows_a_higher_floor(path: Path) -> None:
    own = room_of(path)
    assert own in FLOOR, f"{own}: give the new module a floor in {Path(__file__).name}"
    for other in imports(path):
        if other == "":  # the public names: predictors and builders
            assert FLOOR[own] == 8, f"{path}: only floor 8 imports public names from the package; import the module that defines them"
            continue
        assert FLOOR[other] <= FLOOR[own], f"{path}: floor {FLOOR[own]} imports {other} of floor {FLOOR[other]}"
        if FLOOR[own] in APART:
            assert other == own or FLOOR[other] < FLOOR[own], f"{path}: {own} and {other} must not know each other"


def test_triton_kernels_know_nothing_of_the_package() -> None:
    assert not [f"{path}: {name}" for path in TRITON for name in imports(path) if name != "kernels"]


def test_native_code_is_free_of_torch_and_python() -> None:
    files = [p for p in (ROOT / "csrc").rglob("*") if p.suffix in {".h", ".cuh", ".cu", ".cpp"}]
    assert files
    for path in files:
        assert not re.search(r'#include\s*[<"](torch|ATen|c10|pybind11|Python\.h)', path.read_text()), path


def test_every_stem_is_whole() -> None:
    """The header says which devices the stem has launchers for; a kernel in CUDA has a Triton twin, one in Triton may be alone."""
    headers = {p.stem: p.read_text() for p in (ROOT / "csrc").glob("*.h")}
    always = ["bindings/{}.cpp", "sam2_fast/ops/{}.py", "tests/ops/test_{}.py", "benchmarks/{}.py", "docs/kernels/{}.md"]
    by_device = {"cpu": ["csrc/cpu/{}.cpp"], "cuda": ["csrc/cuda/{}.cu", "kernels/{}.py"]}
    in_folder = {"cpu": ["csrc/cpu/{0}/{0}.cpp"], "cuda": by_device["cuda"]}
    expected = {place.format(stem) for stem in headers for place in always}
    for stem, header in headers.items():
        devices = [device for device in by_device if f"{stem}_{device}(" in header]
        assert devices, f"csrc/{stem}.h declares no launcher"
        places = in_folder if (ROOT / f"csrc/cpu/{stem}").is_dir() else by_device
        expected |= {place.format(stem) for device in devices for place in places[device]}
        expected |= {path for path in (f"kernels/{stem}.py",) if (ROOT / path).is_file()}
    alone = [p.stem for p in TRITON if p.stem not in headers and p.stem not in INFRASTRUCTURE]  # in Triton and torch only
    expected |= {place.format(stem) for stem in alone for place in (*always[1:], "kernels/{}.py")}
    assert not [place for place in expected if not (ROOT / place).is_file()]
    native = [*(ROOT / "csrc").rglob("*.cu"), *(ROOT / "csrc").rglob("*.cpp"), *TRITON, *(ROOT / "bindings").glob("*.cpp")]
    orphans = [p for p in native if p.stem not in INFRASTRUCTURE and str(p.relative_to(ROOT)) not in expected]
    assert not orphans, "each native file belongs to a stem whose header in csrc/ declares its launcher"
    listed = re.findall(r"set\(SAM2_FAST_(?:ISA_)?STEMS ([^)]*)\)", (ROOT / "CMakeLists.txt").read_text())
    assert set(" ".join(listed).split()) == set(headers)


NATIVE = sorted(p for d in ("csrc", "bindings") for p in (ROOT / d).rglob("*") if p.suffix in {".h", ".cuh", ".cu", ".cpp"})


@pytest.mark.parametrize("path", NATIVE, ids=lambda p: str(p.relative_to(ROOT)))
def test_native_code_is_one_statement_a_line(path: Path) -> None:
    source = path.read_text()
    assert not comma_operators(source), f"{path}: statements end in semicolons"
    assert not several_on_a_line(source), f"{path}: a statement has a line of its own"
    assert not nested_conditionals(source), f"{path}: a conditional expression has no other inside"


def lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def test_files_stay_readable() -> None:
    everywhere = [p for d in ("sam2_fast", "csrc", "bindings", "kernels", "tests", "benchmarks", "tools") for p in (ROOT / d).rglob("*")]
    code = [p for p in everywhere if p.suffix in {".py", ".cpp", ".cu", ".h", ".cuh"}]
    assert not {str(p.relative_to(ROOT)): lines(p) for p in code if lines(p) > (MAX_TEST_LINES if "tests" in p.parts else MAX_LINES)}
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
            broad = node.type is None or (isinstance(node.type, ast.Name) and node.type.id in {"Exception", "BaseException"})
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
                assert not ast.unparse(target).startswith("torch.backends."), f"{where}: a global setting is the caller's choice"
