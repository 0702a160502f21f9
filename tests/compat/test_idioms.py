"""What users do with the official package works with ours: small scripts, run with both.

tests/third_party/idioms has the scripts. The results that each stores are compared. Within those
of one package, `changed...` must differ from `plain`, and `same...` must not.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.compat.programs import (
    ROOT,
    environment,
    hydra_folder,
    hydra_packages,
    official_package,
    write_clip,
)

DRIVERS = ROOT / "tests" / "third_party"
FOLDER = DRIVERS / "idioms"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "common")
REQUIRED = {
    "peft_lora": "peft",
    "compose_instantiate": "hydra",
    "training_compose": "hydra",
    "yaml_on_disk": "hydra",
}
LINES = 30

# The largest error of a tensor relative to its largest absolute value, by script or by script and
# name of a result. With PyTorch's kernels for older processors (ATEN_CPU_CAPABILITY=default,
# MKL_CBWR=COMPATIBLE) the official package differs from itself by 1e-6.
RELATIVE = 2e-5
RELATIVES = {
    "hooks": 1e-4,  # 7e-6
    "finetune/gradients": 1e-3,
    "finetune_encoder": 1e-3,
    # An activation at a rounding boundary changes by a whole step of int8, and with it the
    # activations of all later layers: errors grow to that of quantisation, 0.02 to 0.03.
    "quantise/first": 0.02,
    "quantise/masks": 0.06,
}
# Likewise the absolute error, added to it.
ABSOLUTES = {
    # Gradients that are zero but for rounding: those of biases of keys.
    "finetune/gradients": 1e-8,
    "finetune_encoder/norms": 1e-8,
    "finetune_encoder/steps": 1e-8,
    # Half a step of AdamW, which is 1e-5 in size, whatever the gradient.
    "finetune/weights": 5e-6,
}
CHANGE = 5  # what is changed differs by more than so many tolerances


@pytest.fixture(scope="module")
def runs(
    request: pytest.FixtureRequest, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The folder of results of each package, after all scripts that are tested have run."""
    names = [
        str(item.callspec.params["name"])
        for item in request.session.items
        if isinstance(item, pytest.Function)
        and item.path == request.path
        and request.fixturename in item.fixturenames
    ]
    clip = tmp_path_factory.mktemp("videos") / "clip"
    write_clip(clip, 5)
    hydra = hydra_packages(tmp_path_factory.mktemp("hydra"))
    scripts = [str(FOLDER / f"{name}.py") for name in names if is_available(name)]
    packages: dict[str, list[str]] = {"ours": []}
    if official := official_package():
        packages["official"] = ["--official", *official]
    folders = {name: tmp_path_factory.mktemp(name) for name in packages}
    launcher = [sys.executable, str(DRIVERS / "run_idioms.py")]
    processes = [
        subprocess.Popen(
            [*launcher, *packages[name], str(checkpoint), str(clip), str(folder), *scripts],
            env=environment(*hydra, OMP_NUM_THREADS="1"),
            cwd=folder,
        )
        for name, folder in folders.items()
    ]
    assert [process.wait() for process in processes] == [0] * len(processes)
    return folders


def is_available(name: str) -> bool:
    """Whether the packages that a script imports are installed."""
    package = REQUIRED.get(name)
    if package == "hydra" and hydra_folder() is not None:
        return True
    return package is None or find_spec(package) is not None


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Tensors, numbers and strings within dictionaries, lists and tuples, with their paths."""
    if isinstance(value, list | tuple):
        value = dict(enumerate(value))
    if not isinstance(value, dict) or not value:
        yield name, value
        return
    for key, child in value.items():
        yield from leaves(child, f"{name}/{key}" if name else str(key))


def error(actual: Any, expected: Any) -> tuple[float, float]:
    """The largest absolute error, and the largest absolute value; inf if types or shapes differ."""
    if not isinstance(expected, torch.Tensor):
        if isinstance(expected, float) and isinstance(actual, float):
            return abs(actual - expected), abs(expected)
        equal = type(actual) is type(expected) and actual == expected
        return (0.0 if equal else float("inf")), 0.0
    if not isinstance(actual, torch.Tensor) or actual.shape != expected.shape:
        return float("inf"), 0.0
    if actual.dtype != expected.dtype or expected.numel() == 0:
        return (0.0 if actual.dtype == expected.dtype else float("inf")), 0.0
    difference = (actual.double() - expected.double()).abs().max().item()
    return difference, expected.double().abs().max().item()


def tolerance(table: dict[str, float], default: float, script: str, path: str) -> float:
    """The entry of a table for results of a script: `script/path`, `script`, or the default."""
    top = path.split("/")[0]
    return table.get(f"{script}/{top}", table.get(script, default))


def differences(script: str, actual: Any, expected: Any, factor: float = 1.0) -> list[str]:
    """Lines that describe results that differ by more than `factor` tolerances."""
    outputs, references = dict(leaves(actual)), dict(leaves(expected))
    lines = [f"{path}: only one has it" for path in outputs.keys() ^ references.keys()]
    for path in references.keys() & outputs.keys():
        distance, scale = error(outputs[path], references[path])
        limit = tolerance(ABSOLUTES, 0.0, script, path)
        limit += tolerance(RELATIVES, RELATIVE, script, path) * scale
        if not distance <= factor * limit:
            lines.append(f"{path}: error {distance:.3g}, largest value {scale:.3g}")
            if not isinstance(references[path], torch.Tensor):
                lines[-1] = f"{path}: {outputs[path]!r} is not {references[path]!r}"
    return sorted(lines)


def load(folder: Path, script: str) -> dict[str, Any]:
    """Consistent results of a script; fails with its traceback if there are none."""
    path = folder / f"{script}.pt"
    if not path.exists():
        pytest.fail((folder / f"{script}.log").read_text()[-4000:], pytrace=False)
    results: dict[str, Any] = torch.load(path, weights_only=False)
    for name, value in leaves(results):
        assert not isinstance(value, torch.Tensor) or value.isfinite().all(), name
    plain = {"plain": results.get("plain")}
    for name, value in results.items():
        result = {"plain": value}
        if name.startswith("changed") and not differences(script, result, plain, factor=CHANGE):
            pytest.fail(f"{folder.name}: {name} is like plain", pytrace=False)
        if name.startswith("same") and (lines := differences(script, result, plain)):
            pytest.fail(f"{folder.name}: {name} is not like plain: {lines}", pytrace=False)
    return results


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_idiom_has_the_results_of_the_official_package(name: str, runs: dict[str, Path]) -> None:
    """Every result of the script, within the tolerances above."""
    if not is_available(name):
        pytest.skip(f"{REQUIRED[name]} is not installed")
    if "official" not in runs:
        load(runs["ours"], name)
        return
    expected = load(runs["official"], name)
    lines = differences(name, load(runs["ours"], name), expected)
    if lines:
        pytest.fail("\n".join([f"{len(lines)} results differ", *lines[:20]]), pytrace=False)


@pytest.mark.parametrize("name", NAMES)
def test_idiom_is_a_short_program_of_the_official_package(name: str) -> None:
    """At most 30 lines after the docstring, and no import of our package."""
    source = (FOLDER / f"{name}.py").read_text()
    docstring = ast.parse(source).body[0]
    assert isinstance(docstring, ast.Expr) and docstring.end_lineno
    assert sum(map(bool, source.splitlines()[docstring.end_lineno :])) <= LINES
    assert "sam2_fast" not in source
