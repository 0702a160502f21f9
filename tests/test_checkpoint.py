"""Weights are loaded from every common layout; bad files are refused without running any code.

Robustness row 38.
"""

from __future__ import annotations

import os
import pickle
import struct
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sam2_fast.build_sam import build_sam2, build_sam2_video_predictor
from sam2_fast.config import PRESETS, Sam2Config, preset
from sam2_fast.model import Sam2
from sam2_fast.weights.checkpoint import (
    CheckpointError,
    infer_config,
    load_weights,
    read_state_dict,
)
from sam2_fast.weights.hugging_face import from_hugging_face

SMALL = Sam2Config(
    embed_dim=16, stages=(1, 1, 1, 1), global_blocks=(), image_size=64, memory_layers=1
)


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return build_sam2("tiny", device="cpu", seed=0, image_size=64).state_dict()


def meta_state(config: Sam2Config) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return Sam2(config).state_dict()


@pytest.mark.parametrize("version", ["2.0", "2.1"])
@pytest.mark.parametrize("name", PRESETS)
def test_size_and_version_are_inferred_from_the_keys(name: str, version: str) -> None:
    assert infer_config(meta_state(preset(name, version)), image_size=1024) == preset(name, version)


def test_smaller_layers_are_inferred_from_the_shapes() -> None:
    config = replace(PRESETS["tiny"], memory_layers=2, memory_ffn_dim=512, decoder_mlp_dim=256)
    assert infer_config(meta_state(config)) == config


LAYOUTS: dict[str, Any] = {
    "official": lambda s: {"model": s},
    "training": lambda s: {"model": s, "optimizer": {"state": {}}, "epoch": 3, "scaler": {}},
    "bare": lambda s: s,
    "data parallel": lambda s: {"model": {f"module.{k}": v for k, v in s.items()}},
    "compiled": lambda s: {"state_dict": {f"_orig_mod.{k}": v for k, v in s.items()}},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pickled_layouts_can_be_loaded(
    state: dict[str, torch.Tensor], layout: str, tmp_path: Path
) -> None:
    torch.save(LAYOUTS[layout](state), tmp_path / "weights.pt")
    for source in (tmp_path / "weights.pt", str(tmp_path / "weights.pt"), LAYOUTS[layout](state)):
        model = build_sam2(None, source, device="cpu", image_size=64)
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_safetensors_and_symbolic_links_can_be_loaded(
    state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    save_file(state, tmp_path / "model.safetensors")
    os.symlink(tmp_path / "model.safetensors", tmp_path / "link.safetensors")
    model = build_sam2_video_predictor(
        None, tmp_path / "link.safetensors", device="cpu", image_size=64, dtype=torch.bfloat16
    )
    assert model.dtype == torch.bfloat16 and model.image_size == 64


def test_unknown_hugging_face_names_are_unexpected_keys(
    state: dict[str, torch.Tensor],
) -> None:
    renamed = from_hugging_face({"vision_encoder.new_part.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"unexpected keys vision_encoder\.new_part\.weight"):
        load_weights(Sam2(preset("tiny", image_size=64)), {**state, **renamed})


class Payload:
    """An object that writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (Path.touch, (self.target,))


def files(tmp_path: Path) -> dict[str, tuple[Path, str]]:
    """Bad files by name, each with text of its error message."""
    paths = {name: tmp_path / name for name in MESSAGES}
    paths["empty.pt"].touch()
    paths["garbage.pt"].write_bytes(os.urandom(4096))
    torch.save({"model": {"a": torch.zeros(100)}}, paths["truncated.pt"])
    paths["truncated.pt"].write_bytes(paths["truncated.pt"].read_bytes()[:500])
    paths["code.pt"].write_bytes(pickle.dumps({"model": Payload(tmp_path / "ran")}))
    torch.save({"model": [1, 2, 3]}, paths["list.pt"])
    paths["empty.safetensors"].touch()
    paths["huge_header.safetensors"].write_bytes(struct.pack("<Q", 200 << 20) + b"{" * 1000)
    paths["bad_header.safetensors"].write_bytes(struct.pack("<Q", 500) + b"{" * 1000)
    return {name: (path, MESSAGES[name]) for name, path in paths.items()}


MESSAGES = {
    "empty.pt": "empty",
    "garbage.pt": "not a ",
    "truncated.pt": "not a ",
    "code.pt": "would run code",
    "list.pt": "expected a table of tensors",
    "empty.safetensors": "empty",
    "huge_header.safetensors": "not a ",
    "bad_header.safetensors": "not a ",
}


@pytest.mark.parametrize("name", MESSAGES)
def test_row_38_bad_files_are_refused_at_once_with_their_name_and_run_no_code(
    name: str, tmp_path: Path
) -> None:
    path, message = files(tmp_path)[name]
    started = time.thread_time()
    with pytest.raises(CheckpointError, match=message) as caught:
        read_state_dict(path)
    assert time.thread_time() - started < 1.0 and path.name in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_row_38_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pt"):
        read_state_dict(tmp_path / "nowhere.pt")


def test_row_38_missing_and_unexpected_keys_are_named_and_no_weight_is_changed(
    state: dict[str, torch.Tensor],
) -> None:
    model = Sam2(preset("tiny", image_size=64))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    wrong = {k: v for k, v in state.items() if k != "no_mem_embed"} | {"surprise": torch.zeros(1)}
    with pytest.raises(
        CheckpointError, match=r"missing keys no_mem_embed, unexpected keys surprise"
    ):
        load_weights(model, wrong)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_row_38_the_error_names_another_version_or_size_of_weights(
    state: dict[str, torch.Tensor],
) -> None:
    with pytest.raises(CheckpointError, match=r"looks like SAM 2\.1, the model is SAM 2\.0"):
        build_sam2("configs/sam2/sam2_hiera_t.yaml", {"model": state}, device="cpu", image_size=64)
    with pytest.raises(CheckpointError, match=r"shapes differ|missing keys"):
        build_sam2("base_plus", {"model": state}, device="cpu", image_size=64)
    with pytest.raises(CheckpointError, match="not a SAM 2 model"):
        build_sam2(None, {"model": {"conv.weight": torch.zeros(3)}}, device="cpu")


@pytest.mark.parametrize("builder", [build_sam2, build_sam2_video_predictor])
def test_the_trunk_is_compiled_on_request(builder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    original = torch.nn.Module.compile
    # The backend aot_eager generates no code: the compiler itself is not tested.
    monkeypatch.setattr(
        torch.nn.Module,
        "compile",
        lambda self, **options: original(self, backend="aot_eager", **options),
    )
    config = Sam2Config(
        embed_dim=16, stages=(1, 1, 1, 1), global_blocks=(2,), windows=(8, 4, 4, 2), image_size=64
    )
    eager, compiled = (
        builder(config, device="cpu", seed=0, compile=option) for option in (False, True)
    )
    assert eager.image_encoder.trunk._compiled_call_impl is None
    assert compiled.image_encoder.trunk._compiled_call_impl is not None
    assert list(eager.state_dict()) == list(compiled.state_dict())
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        for a, b in zip(compiled.encode_image(image), eager.encode_image(image), strict=True):
            torch.testing.assert_close(a, b)
