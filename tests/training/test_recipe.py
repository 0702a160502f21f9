"""Recipes from JSON: defaults, stages and errors; learning rates by weight and by step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sam2_fast.config import Options, Sam2Config
from sam2_fast.model import Sam2
from sam2_fast.training import Recipe, Stage, Synthetic
from sam2_fast.training.optimizer import adamw, parameter_groups, schedule, set_learning_rate
from sam2_fast.training.stored import Folder
from tests.training.recipes import SMALL, write_recipe


def test_keys_on_the_top_level_apply_to_all_stages(tmp_path: Path) -> None:
    recipe = Recipe.load(write_recipe(tmp_path))
    assert [stage.lr for stage in recipe.stages] == [1e-3, 5e-4] and recipe.steps == 6
    assert [recipe.at(step)[1] for step in range(6)] == [0, 1, 2, 0, 1, 2]
    assert recipe.at(4)[0].image_size == 96
    for stage in recipe.stages:
        assert stage.annotator.clicks == 1
        assert stage.sources[0].batch == 2
    assert isinstance(recipe.model, Sam2Config) and recipe.model.stages == (1, 1, 1, 1)


def test_a_short_recipe_fine_tunes_a_released_checkpoint_with_defaults(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text("""{
        "weights": "sam2.1_hiera_tiny.pt",
        "steps": 2000, "lr": 5e-6, "encoder_lr": 3e-6,
        "sources": [{"kind": "folder", "images": "data/JPEGImages", "masks": "data/Annotations"}]
    }""")
    recipe = Recipe.load(tmp_path / "recipe.json")
    (stage,) = recipe.stages
    assert recipe.weights == "sam2.1_hiera_tiny.pt"
    assert isinstance(stage.sources[0], Folder)
    assert stage.sources[0].frames == 8
    assert stage.image_size == 1024
    assert (recipe.weight_decay, recipe.layer_decay, recipe.clip_norm) == (0.1, 0.9, 0.1)
    assert stage.final_lr == 0.1
    assert recipe.ema == 0 and recipe.bfloat16
    assert (stage.losses.mask, stage.losses.dice, stage.losses.even) == (20, 1, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stepz": 3}, "recipe .*: unknown stepz; expected keys of"),
        ({"stages": [{"steps": 0}]}, "stage 0: expected steps of 1 or more"),
        ({"stages": [{"steps": 3}, {"speed": 1}]}, "stage 1: unknown speed"),
        ({"stages": 3}, "stages: expected a list"),
        ({"stages": []}, "expected `model`, `weights` or both, and at least one stage"),
        (
            {"sources": [{"kind": "tape"}]},
            "source 0: kind: expected one of synthetic, folder, sa-v, sa-1b, got 'tape'",
        ),
        ({"sources": [{"kind": "synthetic", "share": 0}]}, "expected sources with shares"),
        (
            {"sources": [{"kind": "synthetic", "world": {"hight": 3}}]},
            "source 0: world: unknown hight",
        ),
        ({"annotator": {"points": 2}}, "annotator: points: expected probabilities"),
        ({"model": {"stages": [1, 2]}}, "model: stages: expected 4 entries"),
        ({"model": None}, "expected `model`, `weights` or both"),
        ({"ema": 1.0}, r"expected ema in \[0, 1\)"),
        ({"lr": "fast"}, "stage 0: "),
    ],
)
def test_errors_name_the_invalid_key(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe.load(write_recipe(tmp_path, **changes))


def test_errors_name_a_file_that_is_not_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ValueError, match=r"x\.json: not JSON"):
        Recipe.load(tmp_path / "x.json")
    (tmp_path / "x.json").write_text(json.dumps([SMALL]))
    with pytest.raises(ValueError, match="expected an object with keys, got list"):
        Recipe.load(tmp_path / "x.json")


def test_the_learning_rate_rises_then_falls_as_half_a_cosine() -> None:
    stage = Stage(steps=110, warmup=10, final_lr=0.1)
    shares = [schedule(stage, step) for step in range(110)]
    assert shares[0] == pytest.approx(0.1)
    assert shares[9] == 1.0
    assert shares[60] == pytest.approx(0.55)
    assert shares[9:] == sorted(shares[9:], reverse=True)
    assert shares[-1] == pytest.approx(0.1, abs=1e-3)


def test_learning_rates_and_weight_decay_of_parameters_are_the_official_ones() -> None:
    """Learning rates with 4 blocks and a layer decay of 0.5.

    The last block has 1/2 of the learning rate, the first one 1/16, the patch embedding 1/32, and
    the position table the whole learning rate.
    """
    config = Sam2Config(
        embed_dim=16, stages=(1, 1, 1, 1), global_blocks=(2,), windows=(8, 4, 4, 2), image_size=64
    )
    model = Sam2(config, Options())
    recipe = Recipe(model="tiny", layer_decay=0.5)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = {
        names[id(p)]: group for group in parameter_groups(model, recipe) for p in group["params"]
    }
    assert groups.keys() == set(names.values())
    trunk = "image_encoder.trunk."
    scales = {
        f"{trunk}blocks.3.mlp.layers.0.weight": 1 / 2,
        f"{trunk}blocks.0.norm1.weight": 1 / 16,
        f"{trunk}patch_embed.proj.weight": 1 / 32,
    }
    scales |= {
        f"{trunk}pos_embed": 1,
        f"{trunk}pos_embed_window": 1,
        "image_encoder.neck.convs.0.conv.weight": 1,
        "no_mem_embed": 1,
    }
    assert {name: groups[name]["scale"] for name in scales} == scales
    without_decay = {name for name, group in groups.items() if group["weight_decay"] == 0}
    assert f"{trunk}blocks.0.norm1.weight" in without_decay
    assert all(name in without_decay for name in groups if "bias" in name)
    # Only nn.LayerNorm is without decay; the official LayerNorm2d is another class.
    assert "sam_mask_decoder.output_upscaling.1.weight" not in without_decay
    optimizer = adamw(model, recipe)
    set_learning_rate(optimizer, Stage(steps=10, lr=8.0, encoder_lr=2.0), 0)
    rates = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates["no_mem_embed"] == 8.0
    assert rates[f"{trunk}pos_embed"] == 2.0
    assert rates[f"{trunk}blocks.3.attn.proj.weight"] == 1.0


def test_equal_recipes_have_equal_texts() -> None:
    def text_of(source: Synthetic) -> str:
        return Recipe(model="tiny", stages=(Stage(sources=(source,)),)).text()

    assert text_of(Synthetic(batch=1)) == text_of(Synthetic())
    assert text_of(Synthetic(batch=2)) != text_of(Synthetic())
