"""Every name of an official module exists in the module of the shim."""

from __future__ import annotations

import ast
import json
import os
import sys
from pathlib import Path

import pytest

from sam2_fast.compat.shim import official_names, optional, patches
from tests.compat.programs import ROOT, run

EXCLUDED_MODULES = {"sam2.benchmark": "a program that runs when it is imported"}
EXCLUDED_NAMES: dict[str, str] = {}
"""Official names that the shim does not have, each with the reason."""

REFUSED = {
    "sam2.automatic_mask_generator": (
        "box_area batched_mask_to_box calculate_stability_score mask_to_rle_pytorch "
        "remove_small_regions uncrop_masks",
        "computed for all masks at once by ops",
    ),
    "sam2.build_sam": (
        "build_sam2_hf build_sam2_video_predictor_hf",
        "from_pretrained does not call them",
    ),
    "sam2.modeling.memory_attention": ("get_clones", "constructors do not call it"),
    "sam2.modeling.memory_encoder": ("get_clones", "constructors do not call it"),
    "sam2.modeling.sam2_utils": ("mask_to_box", "sample_box_points does not call it"),
}
"""Official names that cannot be replaced, and why."""


def official_folder() -> Path:
    """The folder of the official package; skips the test without it."""
    folder = Path(os.environ.get("SAM2_FAST_PEERS") or ROOT / ".peers") / "sam2"
    if not folder.is_dir():
        pytest.skip("the official package is not in .peers")
    return folder


def modules(folder: Path) -> dict[str, ast.Module]:
    """The modules of a package, as `sam2` and `sam2.x`."""
    trees = {}
    for path in sorted(folder.rglob("*.py")):
        parts = ["sam2", *path.relative_to(folder).with_suffix("").parts]
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        trees[name] = ast.parse(path.read_text())
    return {name: tree for name, tree in trees.items() if name not in EXCLUDED_MODULES}


def bound_names(tree: ast.Module) -> dict[str, str]:
    """Names that a module binds -> the module that they are imported from, or ""."""
    names: dict[str, str] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names[node.name] = ""
        elif isinstance(node, ast.Assign):
            targets = [t for target in node.targets for t in ast.walk(target)]
            names |= {t.id: "" for t in targets if isinstance(t, ast.Name)}
        elif isinstance(node, ast.Import):
            names |= {a.asname or a.name.split(".")[0]: a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {a.asname or a.name: node.module for a in node.names}
    return names


CHECK = """
import importlib, json, sys
sys.path.append(sys.argv[2])
if len(sys.argv) > 3:
    sys.path.append(sys.argv[3])
    import official_peer
    official_peer._define_missing_operators()
missing = []
for module, names in json.loads(sys.argv[1]).items():
    imported = importlib.import_module(module)
    missing += [f"{module}.{name}" for name in names if not hasattr(imported, name)]
    missing += [f"{module}.{name}: not in dir()" for name in names if name not in dir(imported)]
print(json.dumps(missing))
"""


@pytest.mark.field("B19", "B20")
def test_every_official_name_exists(tmp_path: Path) -> None:
    """Names that a module defines, and names that it imports; see the exclusions above."""
    folder = official_folder()
    names = {module: list(bound_names(tree)) for module, tree in modules(folder).items()}
    assert len(names) > 20 and "do_pool" in names["sam2.modeling.backbones.hieradet"]
    tools = ROOT.parent / "shared" / "tools"
    further = [str(tools)] if (tools / "official_peer.py").is_file() else []
    command = [sys.executable, "-m", "sam2_fast.compat", "-c", CHECK, json.dumps(names)]
    missing = set(json.loads(run([*command, str(folder.parent), *further], tmp_path)))
    if not further:  # then torchvision may not be importable
        missing -= {name for name in missing if name.startswith("sam2.utils.transforms")}
    assert missing == set(EXCLUDED_NAMES)


def test_the_tables_are_those_of_the_official_package() -> None:
    """What modules import from each other and from other packages."""
    for module, tree in modules(official_folder()).items():
        names = bound_names(tree)
        own = {n: source for n, source in names.items() if source.startswith("sam2.")}
        assert dict(patches.imported_names(module)) == own, module
        others = {n for n, source in names.items() if source and n not in own}
        replaced = {n for n in others if names[n].startswith("torchvision.ops")}  # by `ops.nms`
        assert set(optional.names(module)) == others - replaced, module


def test_every_name_can_be_replaced_or_is_refused_for_a_reason() -> None:
    """No name of the tables is misspelled, none is in two of them, and few are refused."""
    refused: dict[str, set[str]] = {}
    for module, tree in modules(official_folder()).items():
        names = set(bound_names(tree))
        targets = set(official_names.TARGETS.get(module, {}))
        free = set(official_names.FREE_NAMES.get(module, "").split())
        assert targets <= names, (module, targets - names)
        assert free <= names, (module, free - names)
        assert not targets & free, (module, targets & free)
        if rest := {name for name in names if patches.effect(module, name) == patches.REFUSED}:
            refused[module] = rest
    assert refused == {module: set(names.split()) for module, (names, _) in REFUSED.items()}
