"""Programs of the official repository run with our package, unmodified."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sam2_fast.io.rle import decode_rle
from tests.compat.programs import (
    ROOT,
    environment,
    hydra_folder,
    hydra_packages,
    official_package,
    run,
)
from tests.compat.test_idioms import error, leaves

DRIVERS = ROOT / "tests" / "third_party"


@pytest.fixture(scope="module")
def third_party() -> Path:
    """The official repository, unpacked and unchanged."""
    folder = os.environ.get("SAM2_FAST_THIRD_PARTY")
    if not folder or not (Path(folder) / "tools" / "vos_inference.py").is_file():
        pytest.skip(
            "set SAM2_FAST_THIRD_PARTY to an unpacked official repository (tools/, demo/) to run "
            "its programs"
        )
    return Path(folder)


@pytest.fixture(scope="module")
def launchers() -> dict[str, list[str]]:
    """Commands that run a program with our package and, if installed, with the official one."""
    commands = {"ours": [sys.executable, "-m", "sam2_fast.compat"]}
    if folders := official_package():
        commands["official"] = [sys.executable, str(DRIVERS / "run_with_official.py"), *folders]
    return commands


def same_mask(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether the IoU is at least 0.999 or both masks are empty."""
    return bool((first & second).sum() >= 0.999 * (first | second).sum())


@pytest.mark.slow
def test_the_official_vos_tool_runs_unmodified(
    third_party: Path,
    launchers: dict[str, list[str]],
    tmp_path: Path,
    checkpoint: Path,
    frames: Path,
) -> None:
    """tools/vos_inference.py writes the PNGs of the official package for a DAVIS folder."""
    labels = np.zeros((120, 160), dtype=np.uint8)
    labels[30:70, 40:90] = 1
    labels[80:110, 20:60] = 2
    (tmp_path / "masks" / "clip").mkdir(parents=True)
    picture = Image.fromarray(labels)
    picture.putpalette([value for i in range(256) for value in (i, 255 - i, 7 * i % 256)])
    picture.save(tmp_path / "masks" / "clip" / "00000.png")
    options = {
        "--sam2_cfg": "configs/sam2.1/sam2.1_hiera_t.yaml",
        "--sam2_checkpoint": checkpoint,
        "--base_video_dir": frames.parent,
        "--input_mask_dir": tmp_path / "masks",
    }
    results: dict[str, list[np.ndarray]] = {}
    for name, launcher in launchers.items():
        command = [*launcher, str(third_party / "tools" / "vos_inference.py")]
        for option, value in {**options, "--output_mask_dir": tmp_path / name}.items():
            command += [option, str(value)]
        run(command, tmp_path)
        paths = [tmp_path / name / "clip" / f"{t:05d}.png" for t in range(3)]
        results[name] = [np.array(Image.open(path)) for path in paths]
    ours = results["ours"]
    assert np.array_equal(ours[0], labels)
    assert any(0 < (frame == 1).sum() < frame.size for frame in ours[1:])
    for actual, expected in zip(ours, results.get("official", ours), strict=True):
        assert all(same_mask(actual == i, expected == i) for i in range(3))


@pytest.mark.slow
def test_the_official_demo_backend_runs_unmodified(
    third_party: Path,
    launchers: dict[str, list[str]],
    tmp_path: Path,
    checkpoint: Path,
    frames: Path,
) -> None:
    """Every request of the demo, with two objects that are tracked in both directions."""
    pytest.importorskip("dataclasses_json")
    pytest.importorskip("pycocotools")
    settings = {
        "APP_ROOT": str(checkpoint.parents[1]),
        "MODEL_SIZE": "tiny",
        "SAM2_DEMO_FORCE_CPU_DEVICE": "1",
    }
    server = third_party / "demo" / "backend" / "server"
    results: dict[str, Any] = {}
    for name, launcher in launchers.items():
        output = tmp_path / f"{name}.json"
        command = [*launcher, str(DRIVERS / "drive_demo.py"), str(server), str(frames), str(output)]
        run(command, tmp_path, DATA_PATH=str(tmp_path / "data"), **settings)
        results[name] = json.loads(output.read_text())
    ours = results["ours"]
    official = results.get("official", ours)
    assert [without_pixels(r) for r in ours] == [without_pixels(r) for r in official]
    assert any(mask.any() and not mask.all() for mask in masks_in(ours))
    for actual, expected in zip(masks_in(ours), masks_in(official), strict=True):
        assert same_mask(actual, expected)


def without_pixels(response: Any) -> Any:
    """A response without the run lengths of its masks."""
    if isinstance(response, dict):
        return {k: without_pixels(v) for k, v in response.items() if k != "counts"}
    return [without_pixels(v) for v in response] if isinstance(response, list) else response


def masks_in(response: Any) -> list[np.ndarray]:
    """All masks of a response, in order."""
    if isinstance(response, dict):
        if "counts" in response:
            return [decode_rle(response)]
        response = list(response.values())
    if not isinstance(response, list):
        return []
    return [mask for child in response for mask in masks_in(child)]


@pytest.mark.slow
def test_the_official_training_model_runs_unmodified(
    third_party: Path, launchers: dict[str, list[str]], tmp_path: Path, checkpoint: Path
) -> None:
    """training/model/sam2.py from its configuration: losses, masks and gradients are equal."""
    if not (third_party / "training" / "model" / "sam2.py").is_file():
        pytest.skip("the repository in SAM2_FAST_THIRD_PARTY has no training/")
    if hydra_folder() is None and find_spec("hydra") is None:
        pytest.skip("Hydra is not installed")
    (tmp_path / "packages").mkdir()
    hydra = hydra_packages(tmp_path / "packages")
    results = {}
    for package, launcher in launchers.items():
        output = tmp_path / f"{package}.pt"
        program = [str(DRIVERS / "drive_training.py"), str(third_party), str(checkpoint)]
        subprocess.run(
            [*launcher, *program, str(output)],
            env=environment(*hydra, OMP_NUM_THREADS="1"),
            cwd=tmp_path,
            check=True,
            timeout=550,
        )
        results[package] = dict(leaves(torch.load(output, weights_only=False)))
    ours = results["ours"]
    losses = [ours[f"{name}/losses/core_loss"] for name in ("masks", "clicks", "boxes", "eval")]
    assert len(set(losses)) == len(losses) and np.isfinite(losses).all()
    expected = results.get("official", ours)
    assert ours.keys() == expected.keys()
    for name, value in ours.items():
        distance, scale = error(value, expected[name])
        # Gradients with several clicks: 2e-4. All else: 1e-6.
        limit = 1e-3 if "/gradients/" in name else 1e-5
        assert distance <= limit * scale, f"{name}: error {distance:.3g}, largest value {scale:.3g}"
