"""The shim: the module names of the official package import ours."""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest
import torch

import sam2_fast.compat as compat
from sam2_fast.build_sam import build_sam2
from tests.compat.programs import environment

NAMES = {
    "sam2.build_sam": (
        "build_sam2 build_sam2_video_predictor build_sam2_hf build_sam2_video_predictor_hf "
        "_load_checkpoint HF_MODEL_ID_TO_FILENAMES build_sam2_camera_predictor"
    ),
    "sam2.sam2_image_predictor": "SAM2ImagePredictor",
    "sam2.sam2_video_predictor": "SAM2VideoPredictor SAM2VideoPredictorVOS",
    "sam2.sam2_video_predictor_legacy": "SAM2VideoPredictor",
    "sam2.sam2_camera_predictor": "SAM2CameraPredictor",
    "sam2.automatic_mask_generator": "SAM2AutomaticMaskGenerator batched_nms box_area",
    "sam2.utils.misc": (
        "get_sdpa_settings get_connected_components mask_to_box AsyncVideoFrameLoader "
        "load_video_frames load_video_frames_from_jpg_images load_video_frames_from_video_file "
        "fill_holes_in_mask_scores concat_points _load_img_as_tensor"
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
    "sam2.modeling.position_encoding": (
        "PositionEmbeddingSine PositionEmbeddingRandom apply_rotary_enc compute_axial_cis "
        "init_t_xy reshape_for_broadcast"
    ),
    "sam2.modeling.memory_attention": "MemoryAttention MemoryAttentionLayer RoPEAttention",
    "sam2.modeling.memory_encoder": "MemoryEncoder MaskDownSampler CXBlock Fuser",
    "sam2.modeling.sam.prompt_encoder": "PromptEncoder",
    "sam2.modeling.sam.mask_decoder": "MaskDecoder",
    "sam2.modeling.sam.transformer": (
        "TwoWayTransformer TwoWayAttentionBlock Attention RoPEAttention"
    ),
    "sam2.modeling.backbones.hieradet": (
        "Hiera MultiScaleBlock MultiScaleAttention PatchEmbed do_pool"
    ),
    "sam2.modeling.backbones.utils": "PatchEmbed window_partition window_unpartition",
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


@pytest.mark.parametrize("name", sorted({"sam2", *NAMES}))
def test_modules_have_a_file_a_spec_and_a_source(shim: None, name: str) -> None:
    """Programs look for files beside the package."""
    module = importlib.import_module(name)
    path = Path(module.__file__ or "")
    assert path.is_file() and path.is_relative_to(Path(compat.__file__).parent)
    assert module.__spec__ is not None
    assert module.__spec__.name == name and module.__spec__.origin == module.__file__
    assert inspect.getsource(module) == path.read_text()
    assert module.__spec__.loader.get_source(name) == path.read_text()  # type: ignore[union-attr]
    assert importlib.reload(module) is module


@pytest.mark.field("B19")
def test_packages_have_a_folder_and_resources(shim: None, tmp_path: Path) -> None:
    """So does a folder of files without code below them."""
    import sam2.modeling

    assert list(sam2.__path__) == [str(Path(sam2.__file__).parent)]
    assert (files("sam2") / "modeling" / "sam2_base.py").is_file()
    assert (files("sam2.modeling") / "sam" / "transformer.py").is_file()
    names = {module.name for module in pkgutil.iter_modules(sam2.modeling.__path__)}
    assert {"sam", "backbones", "sam2_base"} <= names
    assert not hasattr(sam2.modeling, "sam2_utils")
    assert importlib.import_module("sam2.modeling.sam2_utils") is sam2.modeling.sam2_utils
    data = Path(sam2.__file__).parent / f"data_{os.getpid()}"
    try:
        data.mkdir()
        (data / "a.yaml").write_text("a: 1")
        importlib.invalidate_caches()
        assert (files(f"sam2.{data.name}") / "a.yaml").read_text() == "a: 1"
    finally:
        shutil.rmtree(data)


@pytest.mark.parametrize("name", ["shim", "stub", "official", "__main__", "shim.copies"])
def test_the_parts_of_the_shim_are_no_official_modules(shim: None, name: str) -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(f"sam2.{name}")


def test_a_missing_package_is_named(shim: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that the official package imports from packages that ours does not need."""
    import sam2.build_sam

    monkeypatch.setitem(sys.modules, "hydra", None)
    with pytest.raises(AttributeError, match="'hydra', which sam2_fast does not need"):
        sam2.build_sam.compose
    assert not hasattr(sam2.build_sam, "nothing")
