"""Overrides of Hydra are honoured as Hydra does, or refused; none is ignored."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sam2_fast.build_sam import build_sam2, build_sam2_video_predictor
from sam2_fast.config import Sam2Config
from sam2_fast.model.image_encoder import ImageEncoder
from sam2_fast.official.base import SAM2Base
from sam2_fast.video.predictor import SAM2VideoPredictor

SMALL = Sam2Config(
    embed_dim=16, stages=(1, 1, 1, 1), global_blocks=(), image_size=64, memory_layers=1
)
HERE = __name__


class Predictor(SAM2VideoPredictor):
    """A predictor with an argument of its own, as programs derive it from the official class."""

    def __init__(self, patience: int = 1, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.patience = patience


class BrightEncoder(ImageEncoder):
    """An image encoder with an argument of its own."""

    def __init__(self, brightness: float = 1.0, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.brightness = brightness

    def forward(self, sample: Tensor) -> dict[str, Any]:
        """The results for brighter images."""
        return super().forward(self.brightness * sample)


class NoModel(nn.Module):
    """A module that is not a model."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__()


def build(*overrides: str, video: bool = False, **arguments: Any) -> Any:
    builder = build_sam2_video_predictor if video else build_sam2
    extra = [*overrides]
    return builder(SMALL, device="cpu", seed=0, hydra_overrides_extra=extra, **arguments)


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The classes of this file can be imported by the name of their module."""
    import sys

    monkeypatch.setitem(sys.modules, "overrides_of_a_test", sys.modules[HERE])


@pytest.mark.parametrize("video", [False, True])
def test_the_target_is_the_class_of_the_model(video: bool) -> None:
    model = build(
        "++model._target_=overrides_of_a_test.Predictor", "++model.patience=3", video=video
    )
    assert type(model) is Predictor and model.patience == 3 and model.config == SMALL
    assert model.fill_hole_area == (8 if video else 0)
    assert model.options.dynamic_multimask_via_stability


def test_a_target_of_the_official_package_is_our_class() -> None:
    model = build(
        "++model._target_=sam2.sam2_video_predictor.SAM2VideoPredictor", "++model.fill_hole_area=3"
    )
    assert type(model) is SAM2VideoPredictor and model.fill_hole_area == 3
    assert type(build("++model._target_=sam2.modeling.sam2_base.SAM2Base")) is SAM2Base


def test_the_target_of_a_part_is_its_class() -> None:
    model = build(
        "++model.image_encoder._target_=overrides_of_a_test.BrightEncoder",
        "++model.image_encoder.brightness=2.0",
    )
    plain = build()
    assert type(model.image_encoder) is BrightEncoder
    plain.load_state_dict(model.state_dict())
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        output, expected = model.encode_image(images), plain.encode_image(2 * images)
        for level, reference in zip(output, expected, strict=True):
            torch.testing.assert_close(level, reference, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(output.low, plain.encode_image(images).low, atol=1e-2)


def test_the_architecture_of_parts_can_be_overridden() -> None:
    model = build(
        "++model.num_maskmem=3",
        "model.memory_attention.num_layers=2",
        "++model.memory_attention.layer.dim_feedforward=128",
        "++model.image_encoder.trunk.stages=[1,2,1,1]",
        "++model.image_encoder.trunk.global_att_blocks=[]",
    )
    assert model.config.num_maps == model.num_maskmem == len(model.maskmem_tpos_enc) == 3
    assert model.config.memory_layers == len(model.memory_attention.layers) == 2
    assert model.config.memory_ffn_dim == 128 and model.config.stages == (1, 2, 1, 1)
    assert model.reason_to_call() is None, "ops compute the parts"


def test_dropout_is_overridden_where_the_official_configuration_has_it() -> None:
    layer = build("++model.memory_attention.layer.dropout=0.0").memory_attention.layers[0]
    assert layer.dropout.p == 0.0 and layer.self_attn.dropout_p == 0.1


def test_a_setting_that_no_op_computes_is_called() -> None:
    model = build("++model.memory_attention.layer.activation=gelu")
    reason = "layers.0: activation is <function gelu"
    reasons = model.unfused_parts()
    assert [*reasons] == ["memory_attention"]
    assert reasons["memory_attention"].startswith(reason.replace("<function", "<built-in function"))
    assert "memory_attention.layers.0: activation" in model.reason_to_call()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("nonsense here", "expected strings such as"),
        (5, "expected strings such as"),
        ("++model.no_such_key=1", "unexpected keyword argument 'no_such_key'"),
        ("model.no_such_key=1", "does not exist; write [+][+]"),
        ("~model.no_such_key", "does not exist"),
        ("+model.num_maskmem=3", "exists; write [+][+]"),
        ("++model.image_encoder.no_such_key=1", "unexpected keyword argument 'no_such_key'"),
        ("model.no_such_part.x=1", "'no_such_part' is None in the configuration; known are"),
        ("++model.image_size.x=1", "'image_size' is 64 in the configuration"),
        ("++image_size=64", "expected overrides of the model"),
        ("++scratch.resolution=64", "expected overrides of the model"),
        ("++model.fill_hole_area=many", "option fill_hole_area: expected int"),
        ("++model.pred_obj_scores=false", "every released model has pred_obj_scores=True"),
        ("++model.image_encoder.scalp=2", "image_encoder: expected three levels"),
        ("++model.image_encoder.trunk={a: 1}", "expected a value or a list of values"),
        ("++model.image_size=${scratch.resolution}", "expected a value or a list of values"),
        ("++model.add_tpos_enc_to_obj_ptrs=false", r"all True \(SAM 2.1\) or all False"),
        ("++model._target_=os.system", "expected a class of torch.nn.Module, got os.system"),
        ("++model._target_=no_such_module.Model", "No module named 'no_such_module'"),
        ("++model._target_=sam2.modeling.NoModel", "expected an existing class"),
        ("++model._target_=torch.nn.Identity", "expected a subclass of sam2_fast.SAM2Base"),
        ("++model._target_=null", "expected the path of a class"),
        (
            "++model.image_encoder.trunk._target_=overrides_of_a_test.NoModel",
            r"model.image_encoder: ImageEncoder\(\): .* has no attribute 'channel_list'",
        ),
        ("++model.image_encoder._partial_=true", "use hydra.utils.instantiate"),
        (
            "++model.sam_mask_decoder_extra_args.iou_head_depth=4",
            "sam_mask_decoder_extra_args: expected some of",
        ),
    ],
)
def test_other_overrides_are_refused_with_the_reason(text: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        build(text)
