"""Names that programs replace in official modules take effect, or are refused, and restore."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

import sam2_fast.compat as compat
from sam2_fast.build_sam import build_sam2
from sam2_fast.compat.shim import official_names
from tests.compat.test_shim import forget_sam2

VIDEO = "sam2.sam2_video_predictor"
BASE = "sam2.modeling.sam2_base"
HIERA = "sam2.modeling.backbones.hieradet"
TRANSFORMER = "sam2.modeling.sam.transformer"
FRAMES = np.random.default_rng(0).integers(0, 255, (3, 60, 80, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def shim(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The name `sam2` means our package, with nothing replaced."""
    forget_sam2(monkeypatch)
    compat.install()
    yield
    compat.uninstall()


@pytest.fixture(scope="module")
def predictor() -> Any:
    """A video predictor of the tiny model at 64 pixels, for which objects are present."""
    from sam2_fast.build_sam import build_sam2_video_predictor

    model = build_sam2_video_predictor("tiny", device="cpu", image_size=64, seed=0)
    with torch.no_grad():
        model.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.fill_(2.0)
    return model


def track(predictor: Any) -> torch.Tensor:
    """Masks of three frames for a click on the first and on the last: [3, 1, H, W]."""
    state = predictor.init_state(FRAMES)
    predictor.add_new_points_or_box(state, 0, 1, points=[[40, 30]], labels=[1])
    predictor.add_new_points_or_box(state, 2, 1, points=[[20, 30]], labels=[1])
    return torch.cat([masks for _, _, masks in predictor.propagate_in_video(state)])


def recorded(name: str, calls: list[tuple[Any, ...]]) -> Any:
    """Replace a function by one that stores the arguments of its calls."""
    module, _, attribute = name.rpartition(".")
    original = getattr(importlib.import_module(module), attribute)

    def function(*args: Any, **kwargs: Any) -> Any:
        calls.append((args, kwargs))
        return original(*args, **kwargs)

    return mock.patch(name, function)


def test_clicks_are_appended_by_a_function_of_the_program(predictor: Any) -> None:
    plain = track(predictor)
    moved = mock.Mock(side_effect=lambda _, x, y: {"point_coords": x - 20, "point_labels": y})
    with mock.patch(f"{VIDEO}.concat_points", moved):
        assert not torch.allclose(track(predictor), plain) and moved.call_count == 2


def test_a_progress_bar_is_called_as_in_the_official_predictor(predictor: Any) -> None:
    """Without `disable`, which a bar of a program may not accept."""
    bar = mock.Mock(side_effect=lambda order, desc: [*order])
    with mock.patch(f"{VIDEO}.tqdm", bar):
        track(predictor)
    track(predictor)
    bar.assert_called_once_with(range(3), desc="propagate in video")


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        (f"{HIERA}.do_pool", {"image_encoder"}),
        (f"{HIERA}.window_partition", {"image_encoder"}),
        (f"{HIERA}.window_unpartition", {"image_encoder"}),
        (f"{TRANSFORMER}.apply_rotary_enc", {"memory_attention"}),
        (f"{TRANSFORMER}.compute_axial_cis", {"memory_attention"}),
        ("sam2.modeling.position_encoding.init_t_xy", {"memory_attention"}),
        ("sam2.modeling.position_encoding.reshape_for_broadcast", {"memory_attention"}),
    ],
)
def test_ops_give_way_to_a_replaced_function(predictor: Any, name: str, parts: set[str]) -> None:
    """Only in the parts that call it; equal functions have equal results."""
    expected, calls = track(predictor), list[Any]()
    assert predictor.unfused_parts() == {}
    with recorded(name, calls):
        masks = track(predictor)
        unfused = predictor.unfused_parts()
    assert calls
    assert {part.split(".")[0] for part in unfused} == parts
    assert all(name.rpartition(".")[2] in reason for reason in unfused.values())
    torch.testing.assert_close(masks, expected, rtol=1e-3, atol=1e-3)
    assert predictor.unfused_parts() == {}
    count = len(calls)
    assert torch.equal(track(predictor), expected)
    assert len(calls) == count


def test_a_replaced_function_changes_results(predictor: Any) -> None:
    expected = track(predictor)
    module = importlib.import_module(HIERA)
    do_pool, functional = module.do_pool, module.F
    with mock.patch(f"{HIERA}.do_pool", lambda x, pool, norm=None: 2 * do_pool(x, pool, norm)):
        assert not torch.allclose(track(predictor), expected)
    own = SimpleNamespace(**vars(functional))
    own.scaled_dot_product_attention = lambda q, k, v: v.mean(-2, keepdim=True).expand(
        *q.shape[:-1], -1
    )
    with mock.patch(f"{HIERA}.F", own):
        assert not torch.allclose(track(predictor), expected)
    assert torch.equal(track(predictor), expected)


@pytest.mark.parametrize("name", ["select_closest_cond_frames", "get_1d_sine_pe"])
def test_functions_of_the_memory_are_called_for_each_frame(predictor: Any, name: str) -> None:
    expected, calls = track(predictor), list[Any]()
    with recorded(f"{BASE}.{name}", calls):
        masks = track(predictor)
    assert len(calls) == 1  # frame 1: the others are prompted
    torch.testing.assert_close(masks, expected, rtol=1e-3, atol=1e-3)


def test_fewer_prompted_frames_can_be_selected(predictor: Any) -> None:
    """By the results of the program's function."""
    expected = track(predictor)
    first = lambda frame, outputs, limit: ({0: outputs[0]}, {2: outputs[2]})  # noqa: E731
    with mock.patch(f"{BASE}.select_closest_cond_frames", first):
        masks = track(predictor)
    assert torch.allclose(masks[0], expected[0]) and not torch.allclose(masks[1], expected[1])


def test_the_logit_of_absent_objects_can_be_replaced(predictor: Any) -> None:
    """In the model, for objects that the decoder does not see; in the predictor, for others."""
    bias = predictor.sam_mask_decoder.pred_obj_score_head.layers[-1].bias
    with torch.no_grad(), mock.patch(f"{BASE}.NO_OBJ_SCORE", -7.0):
        bias.sub_(1000.0)
        masks = track(predictor)
        bias.add_(1000.0)
    assert (masks == -7.0).all()
    state = predictor.init_state(FRAMES)
    predictor.add_new_points_or_box(state, 0, 1, points=[[40, 30]], labels=[1])
    with mock.patch(f"{VIDEO}.NO_OBJ_SCORE", -9.0):
        _, _, masks = predictor.add_new_points_or_box(state, 1, 2, points=[[40, 30]], labels=[1])
    assert (masks[0] == -9.0).all() and not (masks[1] == -9.0).any()


def test_holes_are_filled_by_a_function_of_the_program(predictor: Any) -> None:
    """It gets one object at a time."""
    calls: list[Any] = []
    with recorded(f"{VIDEO}.fill_holes_in_mask_scores", calls):
        track(predictor)
    assert {tuple(args[0].shape) for args, _ in calls} == {(1, 1, 16, 16)}
    assert {args[1] for args, _ in calls} == {8}


def test_components_are_those_of_a_function_of_the_program(predictor: Any) -> None:
    """`fill_holes_in_mask_scores` looks it up."""
    expected = track(predictor)
    none = lambda mask: (torch.zeros_like(mask, dtype=torch.int32),) * 2  # noqa: E731
    all_filled = lambda mask: (torch.ones_like(mask, dtype=torch.int32),) * 2  # noqa: E731
    with mock.patch("sam2.utils.misc.get_connected_components", all_filled):
        assert torch.allclose(track(predictor), torch.tensor(0.1))
    with mock.patch("sam2.utils.misc.get_connected_components", none):
        assert not torch.allclose(track(predictor), torch.tensor(0.1))
    assert torch.equal(track(predictor), expected)


def test_frames_are_loaded_by_a_function_of_the_program(predictor: Any) -> None:
    """With the arguments of the official predictor; frames are read when they are tracked."""
    images = torch.randn(3, 3, 64, 64)
    load = mock.Mock(return_value=(images, 60, 80))
    with mock.patch(f"{VIDEO}.load_video_frames", load):
        state = predictor.init_state("own://video", True)
    assert load.call_args.kwargs == {
        "video_path": "own://video",
        "image_size": 64,
        "offload_video_to_cpu": True,
        "async_loading_frames": False,
        "compute_device": torch.device("cpu"),
    }
    assert (state["num_frames"], state["video_height"], state["video_width"]) == (3, 60, 80)
    predictor.add_new_points_or_box(state, 0, 1, points=[[40, 30]], labels=[1])
    before = predictor.add_new_points_or_box(state, 1, 1, points=[[40, 30]], labels=[1])[2].clone()
    images[1] += 1.0
    predictor.reset_state(state)
    predictor.add_new_points_or_box(state, 0, 1, points=[[40, 30]], labels=[1])
    after = predictor.add_new_points_or_box(state, 1, 1, points=[[40, 30]], labels=[1])[2]
    assert not torch.allclose(after, before)
    with pytest.raises(FileNotFoundError):
        predictor.init_state("own://video")


def test_pictures_are_loaded_by_a_function_of_the_program(predictor: Any, frames: Path) -> None:
    """`load_video_frames` of `sam2.utils.misc` looks it up."""
    load = mock.Mock(return_value=(torch.zeros(3, 64, 64, dtype=torch.float64), 60, 80))
    with mock.patch("sam2.utils.misc._load_img_as_tensor", load):
        state = predictor.init_state(frames)
        assert [call.args for call in load.call_args_list] == [
            (str(frames / f"{i:05d}.jpg"), 64) for i in range(3)
        ]
        with mock.patch("sam2.utils.misc.tqdm", lambda paths, desc: paths):
            pass
        assert predictor.init_state(frames)["video_width"] == 80  # one of two is restored
        with mock.patch(
            f"{VIDEO}.load_video_frames", return_value=(torch.zeros(1, 3, 64, 64), 9, 9)
        ):
            assert predictor.init_state(frames)["video_width"] == 9
        assert predictor.init_state(frames)["video_width"] == 80
    assert state["video_width"] == 80
    assert predictor.init_state(frames)["video_width"] == 160


def test_duplicates_are_removed_by_a_function_of_the_program() -> None:
    from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator

    generator = SAM2AutomaticMaskGenerator(
        build_sam2("tiny", device="cpu", image_size=64, seed=0),
        points_per_side=2,
        pred_iou_thresh=0.0,
        stability_score_thresh=0.0,
        crop_n_layers=0,
    )
    before = len(generator.generate(FRAMES[0]))
    calls: list[Any] = []

    def first(*args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append((args, kwargs))
        return torch.tensor([0])

    with mock.patch("sam2.automatic_mask_generator.batched_nms", first):
        assert len(generator.generate(FRAMES[0])) == 1
    assert len(generator.generate(FRAMES[0])) == before
    assert calls[0][1] == {"iou_threshold": 0.7}


@pytest.mark.parametrize(
    ("module", "name", "part"),
    [
        (BASE, "MaskDecoder", "sam_mask_decoder"),
        (BASE, "TwoWayTransformer", "sam_mask_decoder.transformer"),
        (HIERA, "MultiScaleBlock", "image_encoder.trunk.blocks.3"),
        (TRANSFORMER, "RoPEAttention", "memory_attention.layers.0.self_attn"),
        ("sam2.modeling.memory_encoder", "CXBlock", "memory_encoder.fuser.layers.1"),
        ("sam2.modeling.position_encoding", "PositionEmbeddingSine", "image_encoder.neck"),
    ],
)
def test_models_are_built_of_the_classes_of_the_program(module: str, name: str, part: str) -> None:
    from sam2.build_sam import build_sam2

    kind = getattr(importlib.import_module(module), name)
    own = type(name, (kind,), {})
    overrides = ["++model.image_size=64"]
    with mock.patch(f"{module}.{name}", own):
        model = build_sam2("tiny", device="cpu", hydra_overrides_extra=overrides)
        assert any(type(x) is own for x in model.get_submodule(part).modules())
        assert model.unfused_parts()
    model = build_sam2("tiny", device="cpu", hydra_overrides_extra=overrides)
    assert not any(type(x) is own for x in model.modules())


@pytest.mark.field("B21")
def test_builders_make_the_predictor_of_the_program() -> None:
    from sam2.build_sam import build_sam2_camera_predictor, build_sam2_video_predictor
    from sam2.sam2_camera_predictor import SAM2CameraPredictor
    from sam2.sam2_video_predictor import SAM2VideoPredictor

    own = type("Own", (SAM2VideoPredictor,), {})
    size = {"device": "cpu", "hydra_overrides_extra": ["++model.image_size=64"]}
    with mock.patch(f"{VIDEO}.SAM2VideoPredictor", own):
        assert type(build_sam2_video_predictor("tiny", **size)) is own
        camera = build_sam2_camera_predictor("tiny", **size)
    assert type(camera) is SAM2CameraPredictor and type(camera.predictor) is own
    assert camera.load_first_frame(FRAMES[0]) == 0


def test_a_loader_of_checkpoints_is_called() -> None:
    """Programs replace it to load weights that do not fit strictly."""
    from sam2.build_sam import build_sam2

    calls = []
    with mock.patch("sam2.build_sam._load_checkpoint", lambda *args: calls.append(args)):
        model = build_sam2("tiny", "absent.pt", "cpu", hydra_overrides_extra=[])
    assert calls == [(model, "absent.pt")]
    with pytest.raises(FileNotFoundError):
        build_sam2("tiny", "absent.pt", "cpu")


def test_a_configuration_of_the_program_is_composed_and_instantiated() -> None:
    """With the overrides of the official builders."""
    module = importlib.import_module("sam2.build_sam")
    model = build_sam2("tiny", device="cpu", image_size=64, seed=0).train()
    config = SimpleNamespace(model={"a": 1})
    with (
        mock.patch.object(module, "compose", mock.Mock(return_value=config), create=True),
        mock.patch.object(module, "instantiate", mock.Mock(return_value=model), create=True),
        mock.patch.object(module, "_load_checkpoint"),
    ):
        built = module.build_sam2_video_predictor(
            "own.yaml", "weights.pt", "cpu", hydra_overrides_extra=["+a=1"], vos_optimized=True
        )
        arguments = module.compose.call_args.kwargs
        module.instantiate.assert_called_once_with({"a": 1}, _recursive_=True)
        module._load_checkpoint.assert_called_once_with(model, "weights.pt")
    assert built is model and not model.training
    assert arguments["config_name"] == "own.yaml"
    target = "++model._target_=sam2.sam2_video_predictor.SAM2VideoPredictorVOS"
    assert arguments["overrides"][:2] == [target, "+a=1"]
    assert "++model.fill_hole_area=8" in arguments["overrides"]
    decoder = "++model.sam_mask_decoder_extra_args.dynamic_multimask_via_stability=true"
    assert decoder in arguments["overrides"]
    assert type(module.build_sam2("tiny", device="cpu")) is type(model)


def test_weights_of_the_hub_are_those_of_the_program() -> None:
    from sam2 import build_sam as module

    files = lambda model_id: ("configs/sam2.1/sam2.1_hiera_t.yaml", f"{model_id}.pt")  # noqa: E731
    with (
        mock.patch("sam2.build_sam._hf_download", files),
        mock.patch("sam2.build_sam._load_checkpoint") as load,
    ):
        module.build_sam2_hf("own/model", device="cpu")
        module.build_sam2_video_predictor_hf("own/model", device="cpu")
    assert [call.args[1] for call in load.call_args_list] == ["own/model.pt"] * 2


def test_what_has_no_effect_is_refused() -> None:
    name = "sam2.modeling.memory_attention.get_clones"
    with (
        pytest.raises(AttributeError, match=r"get_clones cannot be replaced: .*parts\.md"),
        mock.patch(name, mock.Mock()),
    ):
        pass
    module = importlib.import_module("sam2.modeling.memory_attention")
    assert module.get_clones is importlib.import_module("sam2.modeling.sam2_utils").get_clones


def test_another_library_in_a_module_is_warned_of() -> None:
    module = importlib.import_module(VIDEO)
    original = module.torch
    with pytest.warns(UserWarning, match="no effect"):
        module.torch = SimpleNamespace()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module.torch = original
        module.own = 1  # a new name
        del module.own
        with mock.patch(f"{VIDEO}.torch.manual_seed") as seed:
            torch.manual_seed(0)
        assert seed.call_count == 1


def test_a_name_that_was_replaced_before_it_is_imported_elsewhere(predictor: Any) -> None:
    """As `from sam2.utils.misc import ...` in the official predictor, when that is imported."""
    misc = importlib.import_module("sam2.utils.misc")
    filled = mock.Mock(side_effect=lambda mask, max_area: mask)
    misc.fill_holes_in_mask_scores = filled
    track(predictor)
    assert filled.call_count == 0
    module = importlib.import_module(VIDEO)
    assert module.fill_holes_in_mask_scores is filled
    track(predictor)
    assert filled.call_count > 0
    compat.uninstall()
    count = filled.call_count
    track(predictor)
    assert filled.call_count == count


def test_every_listed_variable_exists() -> None:
    """Each can be replaced and restored by its official name."""
    for module_name, names in official_names.TARGETS.items():
        module = importlib.import_module(module_name)
        for name, variables in names.items():
            before = state(variables, name)
            value = object()
            with mock.patch.object(module, name, value, create=True):
                assert state(variables, name) == [value] * len(before), (module_name, name)
            assert state(variables, name) == before, (module_name, name)


def state(variables: str, name: str) -> list[Any]:
    """The values of variables of our modules."""
    pairs = [variable.partition(":") for variable in variables.split()]
    return [getattr(importlib.import_module(f"sam2_fast.{m}"), n or name) for m, _, n in pairs]
