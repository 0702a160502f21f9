"""Builders: official names, overrides without Hydra, devices, dtypes, seeds and the Hub."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from typing import Any

import pytest
import torch

import sam2_fast
from sam2_fast.build_sam import (
    HF_MODEL_ID_TO_FILENAMES,
    build_sam2,
    build_sam2_hf,
    build_sam2_video_predictor,
)
from sam2_fast.config import Options, Sam2Config, preset
from sam2_fast.weights import hub
from sam2_fast.weights.config_names import read_config, read_config_name
from sam2_fast.weights.hub import WeightsUnavailableError
from sam2_fast.weights.overrides import apply_plain, parse_overrides

SMALL = Sam2Config(
    embed_dim=16, stages=(1, 1, 1, 1), global_blocks=(), image_size=64, memory_layers=1
)

NAMES = {
    "tiny": ("tiny", "2.1"),
    "configs/sam2.1/sam2.1_hiera_t.yaml": ("tiny", "2.1"),
    "configs/sam2.1/sam2.1_hiera_b+.yaml": ("base_plus", "2.1"),
    "configs/sam2/sam2_hiera_l.yaml": ("large", "2.0"),
    "sam2_hiera_s.yaml": ("small", "2.0"),
    "sam2_hiera_b+": ("base_plus", "2.0"),
}


@pytest.mark.parametrize("name", NAMES)
def test_official_configuration_names_are_accepted(name: str) -> None:
    size, version = NAMES[name]
    assert read_config(name) == read_config_name(name) == preset(size, version)


@pytest.mark.parametrize(
    "name",
    [
        "medium",
        "configs/sam2.1/sam2.1_hiera_xl.yaml",
        "configs/sam2/sam2.1_hiera_t.yaml",
        "",
        "//home/user/sam2/configs/sam2.1/sam2.1_hiera_s.yaml",
        "my_configs/sam2.1_hiera_t.yaml",
    ],
)
def test_other_names_and_missing_files_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="config_file: expected one of"):
        read_config(name)


def test_all_eight_hub_ids_have_a_known_configuration() -> None:
    assert len(HF_MODEL_ID_TO_FILENAMES) == 8
    assert HF_MODEL_ID_TO_FILENAMES["facebook/sam2.1-hiera-base-plus"] == (
        "configs/sam2.1/sam2.1_hiera_b+.yaml",
        "sam2.1_hiera_base_plus.pt",
    )
    versions = {read_config_name(c).version for c, _ in HF_MODEL_ID_TO_FILENAMES.values()}
    assert versions == {"2.0", "2.1"}


@pytest.mark.parametrize("prefix", ["++", "+", ""])
def test_overrides_may_have_any_prefix_of_hydra(prefix: str) -> None:
    overrides = [
        "model.image_size=512",
        "model.fill_hole_area=4",
        "model.non_overlap_masks=true",
        "model.sam_mask_decoder_extra_args.dynamic_multimask_stability_delta=0.1",
    ]
    parsed = parse_overrides([prefix + text for text in overrides])
    assert all(override.is_plain for override in parsed)
    config, options = apply_plain(SMALL, Options(), parsed)
    assert config.image_size == 512 and options.fill_hole_area == 4 and options.non_overlap_masks
    assert options.dynamic_multimask_stability_delta == 0.1
    _, options = apply_plain(config, options, parse_overrides(["~model.fill_hole_area"]))
    assert options.fill_hole_area == 0


def test_options_are_attributes_with_their_official_names() -> None:
    model = build_sam2_video_predictor(SMALL, device="cpu")
    assert model.fill_hole_area == 8
    model.fill_hole_area = 0
    assert model.options.fill_hole_area == 0
    with pytest.raises(ValueError, match="fill_hole_area: expected int"):
        model.fill_hole_area = "few"


def test_a_seed_determines_the_weights_and_does_not_change_the_global_generator() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    a, b = (build_sam2(SMALL, device="cpu", seed=3).state_dict() for _ in range(2))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_modes_dtypes_and_missing_arguments() -> None:
    assert build_sam2(SMALL, device="cpu", mode="train").training
    assert not build_sam2(SMALL, device="cpu").training
    assert build_sam2(SMALL, device="cpu", dtype=torch.float16).dtype == torch.float16
    for wrong in ({"mode": "test"}, {"dtype": torch.int8}):
        with pytest.raises(ValueError, match="expected"):
            build_sam2(SMALL, device="cpu", **wrong)
    with pytest.raises(ValueError, match="config_file"):
        build_sam2(device="cpu")
    with pytest.raises(ValueError, match="multiple of 32"):
        build_sam2(SMALL, device="cpu", image_size=100)


def test_half_precision_keeps_position_tables_in_float32() -> None:
    model = build_sam2(SMALL, device="cpu", dtype=torch.bfloat16)
    matrix = model.sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix
    assert matrix.dtype == torch.float32
    assert model.memory_attention.rope.dtype == torch.float32


def test_vos_optimized_is_accepted() -> None:
    predictor = build_sam2_video_predictor(SMALL, device="cpu", vos_optimized=True)
    assert isinstance(predictor, sam2_fast.SAM2VideoPredictor)


def test_unavailable_weights_are_an_error_with_a_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        WeightsUnavailableError, match=r"facebook/sam2\.1-hiera-tiny.*give the path"
    ):
        build_sam2_hf("facebook/sam2.1-hiera-tiny")
    with pytest.raises(WeightsUnavailableError, match="no such file"):
        build_sam2_hf("not a model id")


def test_models_can_be_copied_and_pickled() -> None:
    model = build_sam2_video_predictor(SMALL, device="cpu", seed=0)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.config == model.config and other.options == model.options
        assert all(torch.equal(v, other.state_dict()[k]) for k, v in model.state_dict().items())
        assert torch.equal(other.memory_attention.rope, model.memory_attention.rope)


def test_a_model_moved_from_the_meta_device_computes_its_tables() -> None:
    expected = build_sam2(SMALL, device="cpu", seed=0)
    with torch.device("meta"):
        model = sam2_fast.SAM2Base(SMALL)
    model = model.to_empty(device="cpu")
    model.load_state_dict(expected.state_dict())
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        features = model.eval().encode_image(images)
        assert torch.equal(features.low, expected.encode_image(images).low)
    assert torch.equal(model.memory_attention.rope, expected.memory_attention.rope)


def test_weights_in_the_hub_cache_are_loaded_offline(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    from safetensors.torch import save_file

    model_id = "facebook/sam2.1-hiera-tiny"
    snapshot = tmp_path / "models--facebook--sam2.1-hiera-tiny" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    state = build_sam2("tiny", device="cpu", seed=1, image_size=64).state_dict()
    save_file(state, snapshot / "model.safetensors")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    if hub.cached(model_id) is None:
        monkeypatch.setattr(
            "huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path), raising=False
        )
    model = build_sam2_hf(model_id, device="cpu", image_size=64)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


IMPORT = """
import logging, sys, warnings, torch


def settings():
    return (
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        torch.get_float32_matmul_precision(),
        torch.get_num_threads(),
        torch.backends.cudnn.allow_tf32,
        len(logging.getLogger().handlers),
        len(warnings.filters),
        torch.get_rng_state().sum().item(),
    )


before = settings()
import sam2_fast
from sam2_fast.weights import hub

for name in sam2_fast.__all__:
    getattr(sam2_fast, name)
assert before == settings(), (before, settings())
optional = "triton torchvision hydra omegaconf iopath decord cv2 av transformers sam2"
imported = set(optional.split()) & set(sys.modules)
assert not imported, imported
assert not torch.cuda.is_initialized()
"""


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )


def test_row_39_importing_changes_no_global_setting_and_needs_no_optional_package() -> None:
    completed = run_python(IMPORT)
    assert completed.returncode == 0, completed.stderr
    assert completed.stdout == completed.stderr == ""


def test_row_39_no_device_is_needed_to_import() -> None:
    completed = run_python(
        "import os; os.environ['CUDA_VISIBLE_DEVICES'] = ''; import sam2_fast._C, sam2_fast; "
        "sam2_fast.build_sam2"
    )
    assert completed.returncode == 0


def test_row_39_a_model_works_in_a_forked_worker() -> None:
    code = """
import multiprocessing, torch
from sam2_fast.build_sam import build_sam2
from sam2_fast.config import Sam2Config

model = build_sam2(
    Sam2Config(embed_dim=16, stages=(1, 1, 1, 1), global_blocks=(), image_size=64, memory_layers=1),
    device="cpu",
    seed=0,
)


def work(queue):
    torch.set_num_threads(1)
    with torch.inference_mode():
        queue.put(model.encode_image(torch.zeros(1, 3, 64, 64)).low.sum().item())


context = multiprocessing.get_context("fork")
queue = context.SimpleQueue()
worker = context.Process(target=work, args=(queue,))
worker.start()
result = queue.get()
worker.join()
assert worker.exitcode == 0 and result == result
"""
    completed = run_python(code)
    assert completed.returncode == 0, completed.stderr


def test_info_lists_versions_devices_and_kernels() -> None:
    facts = sam2_fast.info()
    assert facts["versions"]["sam2_fast"] == sam2_fast.__version__
    assert facts["devices"][0]["name"] == "cpu"
    assert {row["backend"] for row in facts["kernels"]} == {"cuda", "triton", "cpu", "torch"}
    assert all((row["reason_why_not"] is None) or row["reason_why_not"] for row in facts["kernels"])
