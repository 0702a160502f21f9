"""The configurations that Hydra reads are generated from our presets, and are the official ones."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from sam2_fast.config import NANO, PRESETS, Options, Sam2Config, preset
from sam2_fast.model.hiera import Hiera
from sam2_fast.official.base import SAM2Base
from sam2_fast.weights.config_tree import model_tree
from sam2_fast.weights.instantiate import instantiate
from tools import official_configs

PEER = Path(os.environ.get("SAM2_FAST_PEERS") or Path(__file__).parents[2] / ".peers") / "sam2"
FILES = {str(path.relative_to(official_configs.FOLDER)): path for path in official_configs.files()}


def load(path: Path) -> dict[str, Any]:
    """The unresolved contents of a YAML file; numbers in exponential notation are floats."""
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    loaded: dict[str, Any] = numbers(yaml.safe_load(path.read_text(encoding="utf-8")))
    return loaded


def numbers(tree: Any) -> Any:
    """YAML 1.1 reads 1e-6, without a point, as a string."""
    if isinstance(tree, dict):
        return {key: numbers(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [numbers(value) for value in tree]
    return float(tree) if tree == "1e-6" else tree


@pytest.mark.parametrize("name", FILES)
def test_the_files_are_as_generated(name: str) -> None:
    text = FILES[name].read_text(encoding="utf-8")
    assert text == official_configs.files()[FILES[name]], "run `make generated`"


@pytest.mark.parametrize("name", FILES)
def test_keys_and_values_are_the_official_ones(name: str) -> None:
    if not PEER.is_dir():
        pytest.skip("the official package is not in .peers")
    expected = load(PEER / name)
    assert load(FILES[name]) == expected
    assert [*load(FILES[name])] == [*expected]


def test_the_official_package_has_no_other_configurations() -> None:
    if not PEER.is_dir():
        pytest.skip("the official package is not in .peers")
    assert {str(path.relative_to(PEER)) for path in PEER.rglob("*.yaml")} == {*FILES}


@pytest.mark.parametrize(
    "config",
    [
        preset("tiny", "2.0", image_size=64),
        preset("base_plus", image_size=64),
        NANO,
        Sam2Config(stages=(1, 1, 1, 1), hidden_dim=128, memory_dim=32, num_maps=4, dropout=0.0),
    ],
)
def test_the_configuration_of_an_architecture_builds_it(config: Sam2Config) -> None:
    options = Options(multimask_max_pt_num=2, dynamic_multimask_stability_delta=0.1)
    tree = {**model_tree(config, options), "_target_": SAM2Base}
    model = instantiate(tree)
    assert model.config == config and model.options == options


def test_the_defaults_of_the_trunk_are_left_out() -> None:
    assert Hiera().window_spec == PRESETS["base_plus"].windows
    tree = model_tree(PRESETS["base_plus"])["image_encoder"]["trunk"]
    assert sorted(tree) == ["_target_", "embed_dim", "num_heads"]
