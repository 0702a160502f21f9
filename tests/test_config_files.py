"""A configuration file on disk is read, or refused; a preset of its name does not replace it."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from sam2_fast.build_sam import build_sam2, build_sam2_video_predictor
from sam2_fast.config import Sam2Config, preset
from sam2_fast.video.predictor import SAM2VideoPredictor
from sam2_fast.weights.config_names import read_config
from sam2_fast.weights.config_tree import model_tree
from tests.compat.programs import ROOT, environment, hydra_folder, hydra_packages
from tools.official_configs import HEADER, block

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")

SMALL = Sam2Config(
    embed_dim=16, stages=(1, 1, 1, 1), global_blocks=(), image_size=64, memory_layers=1
)
NAME = "sam2.1_hiera_t.yaml"


def write(folder: Path, tree: dict[str, Any] | None = None, name: str = NAME) -> Path:
    """A file with an official name, but another model, or another document."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(HEADER + block(tree or {"model": model_tree(SMALL)}))
    return path


def edited(**changes: Any) -> dict[str, Any]:
    return {"model": {**model_tree(SMALL), **changes}}


@pytest.mark.parametrize("form", ["{path}", "/{path}", "relative", "without suffix"])
def test_a_file_is_read_by_its_path(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path)
    monkeypatch.chdir(tmp_path.parent)
    relative = path.relative_to(tmp_path.parent)
    names = {"relative": str(relative), "without suffix": str(path.with_suffix(""))}
    name = names.get(form, form.format(path=path))
    model = build_sam2(name, device="cpu")
    assert model.config == SMALL


def test_a_file_in_the_working_directory_comes_before_the_official_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"configs/sam2.1/{NAME}"
    write(tmp_path, edited(num_maskmem=4, max_obj_ptrs_in_encoder=9), name)
    monkeypatch.chdir(tmp_path)
    model = build_sam2_video_predictor(name, device="cpu")
    assert type(model) is SAM2VideoPredictor
    assert model.num_maskmem == 4 and model.max_obj_ptrs_in_encoder == 9
    assert model.fill_hole_area == 8, "postprocessing is applied"
    monkeypatch.chdir(tmp_path / "configs")
    assert read_config(name) == preset("tiny")


def test_an_official_file_is_the_preset() -> None:
    folder = ROOT / "sam2_fast" / "compat"
    assert read_config(str(folder / "configs" / "sam2.1" / NAME)) == preset("tiny")
    assert read_config(str(folder / "sam2_hiera_l.yaml")) == preset("large", "2.0")


def test_overrides_are_applied_to_a_file(tmp_path: Path) -> None:
    name = str(write(tmp_path, edited(fill_hole_area=2, _target_=predictor_path())))
    overrides = ["++model.num_maskmem=2", "model.fill_hole_area=3", "~model.num_maskmem"]
    model = build_sam2(name, device="cpu", hydra_overrides_extra=overrides, image_size=96, seed=0)
    assert type(model) is SAM2VideoPredictor, "the file names the class"
    assert model.fill_hole_area == 3 and model.num_maskmem == 7 and model.image_size == 96


def predictor_path() -> str:
    return "sam2.sam2_video_predictor.SAM2VideoPredictor"


def test_numbers_in_exponential_notation_are_numbers(tmp_path: Path) -> None:
    path = write(tmp_path)
    path.write_text(path.read_text().replace("1.0e-06", "1e-6"))
    assert "1e-6" in path.read_text()
    assert build_sam2(str(path), device="cpu").config == SMALL


@pytest.mark.parametrize(
    ("tree", "reason"),
    [
        ({"trainer": {"model": {}}}, r"expected the key 'model' with a model, got \['trainer'\]"),
        ({"model": 5}, "expected the key 'model'"),
        ({"defaults": ["base"], **edited()}, "complete configuration, got one with 'defaults'"),
        (edited(pred_obj_scores=False), "pred_obj_scores: expected .*True"),
        (edited(backbone_stride=8), "backbone_stride: expected .*16"),
        (edited(unknown=1), "unexpected keyword argument 'unknown'"),
        (edited(memory_encoder=None), "memory_encoder: missing"),
        (edited(_target_="os.system"), "expected a class of torch.nn.Module"),
        (edited(image_size=100), "image_size: expected a positive multiple of 32"),
    ],
)
def test_another_file_is_refused_with_the_reason(
    tree: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    path = write(tmp_path, tree)
    with pytest.raises(ValueError, match=reason):
        build_sam2(str(path), device="cpu")


def test_a_file_that_is_no_yaml_is_refused(tmp_path: Path) -> None:
    path = tmp_path / NAME
    path.write_text("model: [")
    with pytest.raises(ValueError, match="not a readable YAML file"):
        build_sam2(str(path), device="cpu")


def test_a_package_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = {"scratch": {"size": 64}, **edited(image_size="${scratch.size}")}
    path = write(tmp_path, tree)
    monkeypatch.setitem(sys.modules, "omegaconf", None)
    with pytest.raises(ValueError, match=r"interpolations .* need OmegaConf: pip install"):
        build_sam2(str(path), device="cpu")
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(ValueError, match="needs PyYAML: pip install"):
        build_sam2(str(path), device="cpu")


HYDRA_PROGRAM = """
import sys

import sam2_fast
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from sam2_fast.compat import install

install()
import sam2

assert GlobalHydra.instance().is_initialized()
assert sam2_fast.build_sam2("sam2_hiera_t.yaml", device="cpu").config.embed_dim == 96
GlobalHydra.instance().clear()
initialize_config_dir(config_dir=sys.argv[1], version_base="1.2")
model = sam2_fast.build_sam2(
    "sam2.1_hiera_t.yaml", device="cpu", hydra_overrides_extra=["++scratch.memories=3"]
)
assert model.config.embed_dim == 16 and model.num_maskmem == 3, model
official = sam2_fast.build_sam2("configs/sam2.1/sam2.1_hiera_t.yaml", device="cpu")
assert official.config.embed_dim == 96, "the folder has no such file"
try:
    sam2_fast.build_sam2("sam2.1_hiera_s.yaml", device="cpu")
except ValueError as error:
    assert "expected the key 'model' with a model, got ['other']" in str(error), error
else:
    raise AssertionError("a file without a model was accepted")
"""


def test_the_folders_of_an_initialised_hydra_are_searched(tmp_path: Path) -> None:
    if hydra_folder() is None and find_spec("hydra") is None:
        pytest.skip("Hydra is not installed")
    hydra = tmp_path / "packages"
    hydra.mkdir()
    write(tmp_path, {"scratch": {"memories": 2}, **edited(num_maskmem="${scratch.memories}")})
    write(tmp_path, {"other": {"x": 1}}, "sam2.1_hiera_s.yaml")
    command = [sys.executable, "-c", HYDRA_PROGRAM, str(tmp_path)]
    folders = hydra_packages(hydra)
    subprocess.run(command, check=True, env=environment(*folders), timeout=300)
