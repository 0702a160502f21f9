"""The shim: programs written for the official package, unmodified, run on this one."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sam2_fast.compat as compat
from sam2_fast.build_sam import build_sam2
from sam2_fast.io.rle import decode_rle

ROOT = Path(__file__).resolve().parents[1]
HERE = Path(__file__).resolve().parent / "third_party"

NAMES = {
    "sam2.build_sam": "build_sam2 build_sam2_video_predictor build_sam2_hf "
    "build_sam2_video_predictor_hf _load_checkpoint "
    "HF_MODEL_ID_TO_FILENAMES",
    "sam2.sam2_image_predictor": "SAM2ImagePredictor",
    "sam2.sam2_video_predictor": "SAM2VideoPredictor SAM2VideoPredictorVOS",
    "sam2.sam2_video_predictor_legacy": "SAM2VideoPredictor",
    "sam2.automatic_mask_generator": "SAM2AutomaticMaskGenerator",
    "sam2.utils.misc": "get_sdpa_settings get_connected_components mask_to_box "
    "AsyncVideoFrameLoader load_video_frames "
    "load_video_frames_from_jpg_images load_video_frames_from_video_file "
    "fill_holes_in_mask_scores concat_points",
    "sam2.utils.amg": "MaskData is_box_near_crop_edge box_xyxy_to_xywh batch_iterator "
    "mask_to_rle_pytorch rle_to_mask area_from_rle "
    "calculate_stability_score build_point_grid build_all_layer_point_grids generate_crop_boxes "
    "uncrop_boxes_xyxy uncrop_points "
    "uncrop_masks remove_small_regions coco_encode_rle batched_mask_to_box",
    "sam2.utils.transforms": "SAM2Transforms",
    "sam2.modeling.sam2_base": "SAM2Base NO_OBJ_SCORE",
    "sam2.modeling.sam2_utils": "select_closest_cond_frames get_1d_sine_pe sample_box_points "
    "sample_random_points_from_errors "
    "sample_one_point_from_error_center get_next_point LayerNorm2d MLP DropPath get_activation_fn "
    "get_clones",
    "sam2.modeling.position_encoding": "PositionEmbeddingSine PositionEmbeddingRandom",
    "sam2.modeling.memory_attention": "MemoryAttention",
    "sam2.modeling.memory_encoder": "MemoryEncoder",
    "sam2.modeling.sam.prompt_encoder": "PromptEncoder",
    "sam2.modeling.sam.mask_decoder": "MaskDecoder",
    "sam2.modeling.sam.transformer": "TwoWayTransformer",
    "sam2.modeling.backbones.hieradet": "Hiera",
    "sam2.modeling.backbones.image_encoder": "ImageEncoder",
    "sam2._C": "get_connected_componnets",
}


@pytest.fixture
def shim(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`sam2` means this package, whatever another test has imported under that name."""
    for name in [n for n in sys.modules if n == "sam2" or n.startswith("sam2.")]:
        monkeypatch.delitem(sys.modules, name)
    compat.install()
    yield
    compat.uninstall()


@pytest.mark.parametrize("module", NAMES)
def test_official_names_resolve_to_ours(shim: None, module: str) -> None:
    found = importlib.import_module(module)
    assert found.__name__ == module
    for name in NAMES[module].split():
        value = getattr(found, name)
        assert getattr(value, "__module__", "sam2_fast").startswith("sam2_fast"), name


def test_classes_are_the_same_under_both_names(shim: None) -> None:
    from sam2.modeling.sam2_base import SAM2Base

    assert SAM2Base is importlib.import_module("sam2_fast.official.base").SAM2Base


def test_a_name_that_upstream_lacks_is_not_found(shim: None) -> None:
    with pytest.raises(ModuleNotFoundError, match=r"sam2\.nothing"):
        importlib.import_module("sam2.nothing")


def test_our_modules_keep_their_own_spec(shim: None) -> None:
    importlib.import_module("sam2.build_sam")
    assert (
        importlib.import_module("sam2_fast.compat.build_sam").__spec__.name
        == "sam2_fast.compat.build_sam"
    )


def test_nothing_is_shadowed_unasked() -> None:
    code = (
        "import sys, sam2_fast, sam2_fast.compat; assert not any('compat' in "
        "type(f).__module__ for f in sys.meta_path)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=environment(), timeout=300)


def test_install_refuses_to_mix_with_another_sam2(monkeypatch: pytest.MonkeyPatch) -> None:
    other = type(sys)("sam2")
    other.__spec__ = importlib.machinery.ModuleSpec("sam2", None)
    monkeypatch.setitem(sys.modules, "sam2", other)
    with pytest.raises(RuntimeError, match="another sam2 is imported already"):
        compat.install()


def test_uninstall_undoes_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n == "sam2" or n.startswith("sam2.")]:
        monkeypatch.delitem(sys.modules, name)
    before = list(sys.meta_path)
    compat.install()
    compat.install()
    importlib.import_module("sam2.utils.amg")
    compat.uninstall()
    assert sys.meta_path == before
    assert "sam2" not in sys.modules


def test_load_checkpoint_raises_as_upstream(shim: None, tmp_path: Path) -> None:
    from sam2.build_sam import _load_checkpoint

    model = build_sam2("tiny", device="cpu", image_size=64)
    torch.save({"model": {"a": torch.zeros(1)}}, tmp_path / "wrong.pt")
    with pytest.raises(RuntimeError, match="missing keys"):
        _load_checkpoint(model, tmp_path / "wrong.pt")
    _load_checkpoint(model, None)


PROGRAM = textwrap.dedent(
    """
    import sys
    import numpy as np
    import torch
    from PIL import Image
    from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator
    from sam2.build_sam import build_sam2, build_sam2_video_predictor
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    checkpoint, frames = sys.argv[1:]
    model_cfg = "configs/sam2.1/sam2.1_hiera_t.yaml"
    small = ["++model.image_size=128"]

    predictor = SAM2ImagePredictor(
        build_sam2(model_cfg, checkpoint, device="cpu", hydra_overrides_extra=small)
    )
    image = np.array(Image.open(frames + "/00000.jpg").convert("RGB"))
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        predictor.set_image(image)
        masks, scores, logits = predictor.predict(
            point_coords=np.array([[60, 40]]), point_labels=np.array([1])
        )
        best = np.argmax(scores)
        masks, _, _ = predictor.predict(
            point_coords=np.array([[60, 40]]),
            point_labels=np.array([1]),
            mask_input=logits[best, :, :][None],
            multimask_output=False,
        )
    assert masks.shape == (1, *image.shape[:2]) and masks.dtype == np.float32, (
        masks.shape,
        masks.dtype,
    )

    predictor = build_sam2_video_predictor(
        model_cfg, checkpoint, device="cpu", hydra_overrides_extra=small
    )
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        state = predictor.init_state(frames)
        frame_idx, object_ids, masks = predictor.add_new_points_or_box(
            state, frame_idx=0, obj_id=1, points=[[60, 40]], labels=[1]
        )
        assert masks.shape == (1, 1, *image.shape[:2])
        video_segments = {}
        for frame_idx, object_ids, masks in predictor.propagate_in_video(state):
            video_segments[frame_idx] = {
                i: (masks[k] > 0.0).cpu().numpy() for k, i in enumerate(object_ids)
            }
    assert sorted(video_segments) == list(range(state["num_frames"])), video_segments.keys()
    predictor.reset_state(state)

    sam2 = build_sam2(
        model_cfg, checkpoint, device="cpu", apply_postprocessing=False, hydra_overrides_extra=small
    )
    generator = SAM2AutomaticMaskGenerator(
        sam2, points_per_side=2, pred_iou_thresh=0.0, stability_score_thresh=0.0
    )
    for mask in sorted(generator.generate(image), key=lambda x: x["area"], reverse=True):
        assert mask["segmentation"].shape == image.shape[:2]
    print("DONE", len(video_segments))
    """
)


def test_readme_idioms_run_through_the_shim(tmp_path: Path, checkpoint: Path, frames: Path) -> None:
    """The three idioms of the official README, in one script, in a process of its own."""
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    found = run(
        [sys.executable, "-m", "sam2_fast.compat", str(script), str(checkpoint), str(frames)],
        tmp_path,
    )
    assert found.stdout.split() == ["DONE", "3"]


def test_the_command_says_how_it_is_used(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sam2_fast.compat"]
    for arguments, message in (([], "usage:"), (["absent.py"], "absent.py: no such file")):
        found = subprocess.run(
            command + arguments,
            capture_output=True,
            text=True,
            env=environment(),
            cwd=tmp_path,
            timeout=300,
            check=False,
        )
        assert found.returncode == 2
        assert message in found.stderr


def test_a_program_keeps_its_exit_code_arguments_and_folder(tmp_path: Path) -> None:
    (tmp_path / "neighbour.py").write_text("VALUE = 7\n")
    (tmp_path / "program.py").write_text(
        "import sys, neighbour\nsys.exit(neighbour.VALUE + len(sys.argv))\n"
    )
    for target in ([str(tmp_path / "program.py")], ["-m", "program"]):
        command = [sys.executable, "-m", "sam2_fast.compat", *target, "--a", "b"]
        assert (
            subprocess.run(
                command, env=environment(), cwd=tmp_path, timeout=300, check=False
            ).returncode
            == 10
        )


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, **more}


def run(command: list[str], folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    found = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=environment(**more),
        cwd=folder,
        timeout=550,
        check=False,
    )
    assert found.returncode == 0, found.stderr[-3000:]
    return found


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of the tiny model in the official layout, none of them constant."""
    model = build_sam2("tiny", device="cpu", seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() > 1 and parameter.std() < 1e-5:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        # Objects that are there: absent ones have no mask.
        model.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.fill_(2.0)
    path = tmp_path_factory.mktemp("weights") / "checkpoints" / "sam2.1_hiera_tiny.pt"
    path.parent.mkdir()
    torch.save({"model": model.state_dict()}, path)
    return path


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three frames of a bright square that moves over noise, 160 x 120."""
    folder = tmp_path_factory.mktemp("videos") / "clip"
    folder.mkdir()
    ground = np.random.default_rng(0).integers(0, 120, (120, 160, 3), dtype=np.uint8)
    for t in range(3):
        frame = ground.copy()
        frame[30:70, 40 + 9 * t : 90 + 9 * t] += 120
        Image.fromarray(frame).save(folder / f"{t:05d}.jpg", quality=95)
    return folder


@pytest.fixture(scope="module")
def third_party() -> Path:
    """An unpacked official repository; nothing in it is changed."""
    folder = Path(os.environ.get("SAM2_FAST_THIRD_PARTY", ""))
    if (
        not os.environ.get("SAM2_FAST_THIRD_PARTY")
        or not (folder / "tools" / "vos_inference.py").is_file()
    ):
        pytest.skip(
            "set SAM2_FAST_THIRD_PARTY to an unpacked official repository (tools/, demo/) to run "
            "its programs"
        )
    return folder


@pytest.fixture(scope="module")
def launchers() -> dict[str, list[str]]:
    """How to run a program: through the shim, and with the official package if it is installed."""
    peers = Path(os.environ.get("SAM2_FAST_PEERS") or ROOT / ".peers")
    tools = ROOT.parent / "shared" / "tools"
    ways = {"ours": [sys.executable, "-m", "sam2_fast.compat"]}
    if (peers / "sam2").is_dir() and (tools / "official_peer.py").is_file():
        ways["official"] = [
            sys.executable,
            str(HERE / "run_with_official.py"),
            str(peers),
            str(tools),
        ]
    return ways


def same_mask(first: np.ndarray, second: np.ndarray) -> bool:
    """IoU of at least 0.999; two empty masks are the same."""
    return bool((first & second).sum() >= 0.999 * (first | second).sum())


@pytest.mark.slow
def test_the_official_vos_tool_runs_unmodified(
    third_party: Path,
    launchers: dict[str, list[str]],
    tmp_path: Path,
    checkpoint: Path,
    frames: Path,
) -> None:
    """tools/vos_inference.py on a folder in DAVIS layout: the official package's PNGs."""
    drawn = np.zeros((120, 160), dtype=np.uint8)
    drawn[30:70, 40:90], drawn[80:110, 20:60] = 1, 2
    (tmp_path / "masks" / "clip").mkdir(parents=True)
    picture = Image.fromarray(drawn)
    picture.putpalette([value for i in range(256) for value in (i, 255 - i, 7 * i % 256)])
    picture.save(tmp_path / "masks" / "clip" / "00000.png")
    options = [
        "--sam2_cfg",
        "configs/sam2.1/sam2.1_hiera_t.yaml",
        "--sam2_checkpoint",
        str(checkpoint),
    ]
    options += [
        "--base_video_dir",
        str(frames.parent),
        "--input_mask_dir",
        str(tmp_path / "masks"),
        "--output_mask_dir",
    ]
    results: dict[str, list[np.ndarray]] = {}
    for name, launcher in launchers.items():
        run(
            [
                *launcher,
                str(third_party / "tools" / "vos_inference.py"),
                *options,
                str(tmp_path / name),
            ],
            tmp_path,
        )
        results[name] = [
            np.array(Image.open(tmp_path / name / "clip" / f"{t:05d}.png")) for t in range(3)
        ]
    assert np.array_equal(results["ours"][0], drawn)
    assert any(0 < (later == 1).sum() < later.size for later in results["ours"][1:])
    for mine, theirs in zip(results["ours"], results.get("official", results["ours"]), strict=True):
        assert all(same_mask(mine == i, theirs == i) for i in range(3))


@pytest.mark.slow
def test_the_official_demo_backend_runs_unmodified(
    third_party: Path,
    launchers: dict[str, list[str]],
    tmp_path: Path,
    checkpoint: Path,
    frames: Path,
) -> None:
    """The demo's predictor behind its own requests: two objects, both directions, all requests."""
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
        arguments = [str(server), str(frames), str(tmp_path / f"{name}.json")]
        run(
            [*launcher, str(HERE / "drive_demo.py"), *arguments],
            tmp_path,
            DATA_PATH=str(tmp_path / "data"),
            **settings,
        )
        results[name] = json.loads((tmp_path / f"{name}.json").read_text())
    mine, theirs = results["ours"], results.get("official", results["ours"])
    assert [shape_of(response) for response in mine] == [shape_of(response) for response in theirs]
    assert any(mask.any() and not mask.all() for mask in masks_in(mine))
    for first, second in zip(masks_in(mine), masks_in(theirs), strict=True):
        assert same_mask(first, second)


def shape_of(response: Any) -> Any:
    """A response without its pixels."""
    if isinstance(response, dict):
        return {k: shape_of(v) for k, v in response.items() if k != "counts"}
    return [shape_of(v) for v in response] if isinstance(response, list) else response


def masks_in(response: Any) -> list[np.ndarray]:
    """Every mask of a response, in order."""
    if isinstance(response, dict) and "counts" in response:
        return [decode_rle(response)]
    children = (
        response.values()
        if isinstance(response, dict)
        else response
        if isinstance(response, list)
        else ()
    )
    return [mask for child in children for mask in masks_in(child)]
