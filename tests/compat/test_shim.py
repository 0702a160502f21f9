"""The shim: the module names of the official package import ours."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import sam2_fast.compat as compat
from sam2_fast.build_sam import build_sam2
from tests.compat.programs import environment

NAMES = {
    "sam2.build_sam": (
        "build_sam2 build_sam2_video_predictor build_sam2_hf build_sam2_video_predictor_hf "
        "_load_checkpoint HF_MODEL_ID_TO_FILENAMES"
    ),
    "sam2.sam2_image_predictor": "SAM2ImagePredictor",
    "sam2.sam2_video_predictor": "SAM2VideoPredictor SAM2VideoPredictorVOS",
    "sam2.sam2_video_predictor_legacy": "SAM2VideoPredictor",
    "sam2.automatic_mask_generator": "SAM2AutomaticMaskGenerator",
    "sam2.utils.misc": (
        "get_sdpa_settings get_connected_components mask_to_box AsyncVideoFrameLoader "
        "load_video_frames load_video_frames_from_jpg_images load_video_frames_from_video_file "
        "fill_holes_in_mask_scores concat_points"
    ),
    "sam2.utils.amg": (
        "MaskData is_box_near_crop_edge box_xyxy_to_xywh batch_iterator mask_to_rle_pytorch "
        "rle_to_mask area_from_rle calculate_stability_score build_point_grid "
        "build_all_layer_point_grids generate_crop_boxes uncrop_boxes_xyxy uncrop_points "
        "uncrop_masks remove_small_regions coco_encode_rle batched_mask_to_box"
    ),
    "sam2.utils.transforms": "SAM2Transforms",
    "sam2.modeling.sam2_base": "SAM2Base NO_OBJ_SCORE",
    "sam2.modeling.sam2_utils": (
        "select_closest_cond_frames get_1d_sine_pe sample_box_points "
        "sample_random_points_from_errors sample_one_point_from_error_center get_next_point "
        "LayerNorm2d MLP DropPath get_activation_fn get_clones"
    ),
    "sam2.modeling.position_encoding": "PositionEmbeddingSine PositionEmbeddingRandom",
    "sam2.modeling.memory_attention": "MemoryAttention MemoryAttentionLayer RoPEAttention",
    "sam2.modeling.memory_encoder": "MemoryEncoder MaskDownSampler CXBlock Fuser",
    "sam2.modeling.sam.prompt_encoder": "PromptEncoder",
    "sam2.modeling.sam.mask_decoder": "MaskDecoder",
    "sam2.modeling.sam.transformer": (
        "TwoWayTransformer TwoWayAttentionBlock Attention RoPEAttention"
    ),
    "sam2.modeling.backbones.hieradet": "Hiera MultiScaleBlock MultiScaleAttention PatchEmbed",
    "sam2.modeling.backbones.utils": "PatchEmbed",
    "sam2.modeling.backbones.image_encoder": "ImageEncoder FpnNeck",
    "sam2._C": "get_connected_componnets",
}


def forget_sam2(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the modules of `sam2`, if other tests have imported any."""
    for name in [n for n in sys.modules if n == "sam2" or n.startswith("sam2.")]:
        monkeypatch.delitem(sys.modules, name)


@pytest.fixture
def shim(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The name `sam2` means our package."""
    forget_sam2(monkeypatch)
    compat.install()
    yield
    compat.uninstall()


@pytest.mark.parametrize("module_name", NAMES)
def test_official_names_are_those_of_our_package(shim: None, module_name: str) -> None:
    module = importlib.import_module(module_name)
    assert module.__name__ == module_name
    for name in NAMES[module_name].split():
        value = getattr(module, name)
        assert getattr(value, "__module__", "sam2_fast").startswith("sam2_fast"), name


def test_classes_are_the_same_under_both_names(shim: None) -> None:
    from sam2.modeling.sam2_base import SAM2Base

    assert SAM2Base is importlib.import_module("sam2_fast.official.base").SAM2Base


def test_names_outside_the_official_package_cannot_be_imported(shim: None) -> None:
    with pytest.raises(ModuleNotFoundError, match=r"sam2\.nothing"):
        importlib.import_module("sam2.nothing")


def test_the_spec_of_our_modules_does_not_change(shim: None) -> None:
    importlib.import_module("sam2.build_sam")
    module = importlib.import_module("sam2_fast.compat.build_sam")
    assert module.__spec__.name == "sam2_fast.compat.build_sam"


def test_importing_our_package_does_not_install_the_shim() -> None:
    code = (
        "import sys, sam2_fast, sam2_fast.compat\n"
        "assert not any('compat' in type(f).__module__ for f in sys.meta_path)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=environment(), timeout=300)


def test_install_is_refused_if_another_sam2_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    other = type(sys)("sam2")
    other.__spec__ = importlib.machinery.ModuleSpec("sam2", None)
    monkeypatch.setitem(sys.modules, "sam2", other)
    with pytest.raises(RuntimeError, match="another sam2 is imported already"):
        compat.install()


def test_uninstall_reverts_install(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_sam2(monkeypatch)
    before = list(sys.meta_path)
    compat.install()
    compat.install()
    importlib.import_module("sam2.utils.amg")
    compat.uninstall()
    assert sys.meta_path == before
    assert "sam2" not in sys.modules


def test_load_checkpoint_raises_as_in_the_official_package(shim: None, tmp_path: Path) -> None:
    from sam2.build_sam import _load_checkpoint

    model = build_sam2("tiny", device="cpu", image_size=64)
    torch.save({"model": {"a": torch.zeros(1)}}, tmp_path / "wrong.pt")
    with pytest.raises(RuntimeError, match="missing keys"):
        _load_checkpoint(model, tmp_path / "wrong.pt")
    _load_checkpoint(model, None)
