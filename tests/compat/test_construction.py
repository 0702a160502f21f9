"""The official constructor of the model: what no model of this library has is refused aloud."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from sam2_fast.config import FIXED_SETTINGS, Options, Sam2Config
from sam2_fast.model.hiera import Hiera
from sam2_fast.model.image_encoder import FpnNeck, ImageEncoder
from sam2_fast.model.memory_attention import MemoryAttention
from sam2_fast.model.memory_encoder import MemoryEncoder
from sam2_fast.model.position import PositionEmbeddingSine
from sam2_fast.official.base import SAM2Base
from sam2_fast.official.construction import SETTINGS
from sam2_fast.video.predictor import SAM2VideoPredictor, SAM2VideoPredictorVOS

CONFIG = Sam2Config(
    embed_dim=16, stages=(1, 1, 1, 1), global_blocks=(), image_size=64, memory_layers=1
)
RELEASED = {name: value for name, value in FIXED_SETTINGS.items() if name in SETTINGS} | {
    "image_size": 64,
    "use_obj_ptrs_in_encoder": True,
    "proj_tpos_enc_in_obj_ptrs": True,
    "use_signed_tpos_enc_to_obj_ptrs": True,
    "no_obj_embed_spatial": True,
}
"""Settings of SAM 2.1 that are not official defaults."""


def parts() -> tuple[ImageEncoder, MemoryAttention, MemoryEncoder]:
    return (
        ImageEncoder.from_config(CONFIG),
        MemoryAttention.from_config(CONFIG),
        MemoryEncoder.from_config(CONFIG),
    )


def trunk(**changes: Any) -> ImageEncoder:
    """An image encoder with another trunk."""
    base = dict(embed_dim=16, stages=(1, 1, 1, 1), global_att_blocks=())
    hiera = Hiera(**base | changes)
    neck = FpnNeck(PositionEmbeddingSine(256), 256, hiera.channel_list)
    return ImageEncoder(hiera, neck, scalp=1)


def test_other_settings_than_the_official_defaults_are_kept() -> None:
    model = SAM2Base(*parts(), 7, 64, **{k: v for k, v in RELEASED.items() if k != "image_size"})
    assert model.config == CONFIG
    official = Options().updated(
        **{n: SETTINGS[n] for n in vars(Options()) if n in SETTINGS and n not in RELEASED},
        use_obj_ptrs_in_encoder=True,
    )
    assert model.options == official, "the defaults are the official ones, not those of `Options`"


def test_the_number_of_memories_is_that_of_the_positions() -> None:
    model = SAM2Base(*parts(), num_maskmem=3, **RELEASED)
    assert model.maskmem_tpos_enc.shape[0] == model.num_maskmem == model.config.num_maps == 3


def test_a_model_without_positions_of_pointers_is_version_2() -> None:
    two = {name: False for name in RELEASED if "tpos" in name or "embed_spatial" in name}
    model = SAM2Base(*parts(), add_tpos_enc_to_obj_ptrs=False, **RELEASED | two)
    assert model.config.version == "2.0" and model.no_obj_embed_spatial is None


@pytest.mark.parametrize("kind", [SAM2VideoPredictor, SAM2VideoPredictorVOS])
def test_predictors_have_options_of_their_own(kind: type[SAM2VideoPredictor]) -> None:
    image_encoder, memory_attention, memory_encoder = parts()
    predictor = kind(
        fill_hole_area=5,
        non_overlap_masks=True,
        image_encoder=image_encoder,
        memory_attention=memory_attention,
        memory_encoder=memory_encoder,
        sam_mask_decoder_extra_args={"dynamic_multimask_via_stability": True},
        **RELEASED,
    )
    assert predictor.fill_hole_area == 5 and predictor.non_overlap_masks
    assert not predictor.clear_non_cond_mem_around_input
    assert predictor.sam_mask_decoder.dynamic_multimask_via_stability
    assert predictor.image_encoder is image_encoder and predictor.config == CONFIG


def test_the_image_encoder_is_compiled_on_request() -> None:
    model = SAM2Base(*parts(), compile_image_encoder=True, **RELEASED)
    assert model.image_encoder.trunk._compiled_call_impl is not None
    assert SAM2Base(*parts(), **RELEASED).image_encoder.trunk._compiled_call_impl is None


def test_a_configuration_is_accepted_as_before() -> None:
    options = Options(fill_hole_area=3)
    for model in (SAM2Base(CONFIG, options), SAM2Base(config=CONFIG, options=options)):
        assert model.config == CONFIG and model.options == options


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"pred_obj_scores": False}, r"pred_obj_scores: expected \{'pred_obj_scores': True\}"),
        ({"soft_no_obj_ptr": True}, "soft_no_obj_ptr: expected .*another architecture"),
        ({"backbone_stride": 8}, "backbone_stride: expected"),
        ({"no_obj_embed_spatial": False}, "no released model has this architecture"),
        ({"image_size": 500}, "image_size: expected a positive multiple of 32 pixels"),
        ({"fill_hole_area": 8}, "unexpected keyword argument 'fill_hole_area'"),
        ({"memory_attention": None}, "memory_attention: missing"),
        ({"memory_attention": 3}, "memory_attention: expected a module, got 3"),
        ({"image_encoder": nn.Identity()}, "assign your module to `model.image_encoder`"),
        ({"image_encoder": lambda: trunk(dim_mul=1.0)}, "image_encoder.trunk: expected q_pool=3"),
        ({"image_encoder": lambda: trunk(q_pool=2)}, "image_encoder.trunk: expected q_pool=3"),
        ({"image_encoder": lambda: trunk(head_mul=1.0)}, "expected .* head_mul=2"),
        ({"sam_mask_decoder_extra_args": {"activation": nn.ReLU}}, "another mask decoder cannot"),
        ({"multimask_min_pt_num": "one"}, "option multimask_min_pt_num: expected int"),
    ],
)
def test_other_arguments_are_refused_with_the_reason(
    changes: dict[str, Any | Callable[[], Any]], reason: str
) -> None:
    built = dict(zip(("image_encoder", "memory_attention", "memory_encoder"), parts(), strict=True))
    own = {
        name: value() if callable(value) and not isinstance(value, nn.Module) else value
        for name, value in changes.items()
    }
    with pytest.raises((TypeError, ValueError), match=reason):
        SAM2Base(**built | RELEASED | own)


def test_the_official_defaults_are_refused_by_name() -> None:
    """They are those of no released model."""
    with pytest.raises(ValueError, match="expected all True"):
        SAM2Base(*parts())


def test_parts_that_do_not_fit_together_are_refused() -> None:
    image_encoder, attention, _ = parts()
    encoder = MemoryEncoder.from_config(Sam2Config(memory_dim=32))
    with pytest.raises(ValueError, match="memory_attention: kv_in_dim: expected 32"):
        SAM2Base(image_encoder, attention, encoder, **RELEASED)
    small = MemoryAttention.from_config(Sam2Config(hidden_dim=128))
    with pytest.raises(ValueError, match="memory_attention: d_model: expected 256"):
        SAM2Base(image_encoder, small, parts()[2], **RELEASED)
    with pytest.raises(TypeError, match="got multiple values for argument 'num_maskmem'"):
        SAM2Base(*parts(), 7, num_maskmem=7)
    with pytest.raises(TypeError, match="expected at most"):
        SAM2Base(*range(99))
