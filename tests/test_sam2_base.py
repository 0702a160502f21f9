"""`SAM2Base`: the official low-level steps give what the verbs of the model give, and refuse what
makes no sense.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sam2_fast.config import VIDEO_POSTPROCESSING, Options, Sam2Config
from sam2_fast.official.base import SAM2Base
from sam2_fast.official.steps import NO_OBJ_SCORE
from sam2_fast.types import Points

SMALL = Sam2Config(
    embed_dim=16,
    stages=(1, 1, 2, 1),
    global_blocks=(3,),
    image_size=64,
    memory_layers=1,
    memory_ffn_dim=32,
    decoder_mlp_dim=32,
)
CLICK = {
    "point_coords": torch.tensor([[[30.0, 20.0]], [[5.0, 60.0]]]),
    "point_labels": torch.ones(2, 1, dtype=torch.int32),
}


@pytest.fixture
def model() -> SAM2Base:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        made = SAM2Base(SMALL, Options(**VIDEO_POSTPROCESSING)).eval()
        for parameter in made.parameters():
            if parameter.numel() > 1 and parameter.std() < 1e-5:
                parameter.add_(torch.randn(parameter.shape) * 0.2)
        made.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.fill_(2.0)
    return made.requires_grad_(False)


def track(
    model: SAM2Base, frame: int, first: bool, memory: dict[str, Any], **given: Any
) -> dict[str, Any]:
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(frame))
    _, features, positions, sizes = model._prepare_backbone_features(model.forward_image(images))
    arguments = {
        "point_inputs": None,
        "mask_inputs": None,
        "output_dict": memory,
        "num_frames": 30,
        **given,
    }
    return model.track_step(frame, first, features, positions, sizes, **arguments)


def empty() -> dict[str, dict[int, Any]]:
    return {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}


def test_layouts(model: SAM2Base) -> None:
    out = model.forward_image(torch.zeros(2, 3, 64, 64))
    assert [tuple(x.shape) for x in out["backbone_fpn"]] == [
        (2, 32, 16, 16),
        (2, 64, 8, 8),
        (2, 256, 4, 4),
    ]
    assert [tuple(x.shape) for x in out["vision_pos_enc"]] == [
        (2, 256, 16, 16),
        (2, 256, 8, 8),
        (2, 256, 4, 4),
    ]
    again, features, positions, sizes = model._prepare_backbone_features(out)
    assert again is not out
    assert sizes == [(16, 16), (8, 8), (4, 4)]
    assert [tuple(x.shape) for x in features] == [(256, 2, 32), (64, 2, 64), (16, 2, 256)]
    assert [tuple(x.shape) for x in positions] == [(256, 2, 256), (64, 2, 256), (16, 2, 256)]


def test_a_click_is_the_verb_track(model: SAM2Base) -> None:
    found = track(model, 0, True, empty(), point_inputs=CLICK)
    features = model.encode_image(
        torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    )
    points = Points(CLICK["point_coords"], CLICK["point_labels"])
    logits, pointer, presence = model.track(
        model.without_memory(features.low), features, points, None, True
    )
    assert torch.equal(found["pred_masks"], logits)
    assert torch.equal(found["obj_ptr"], pointer)
    assert torch.equal(found["object_score_logits"], presence)
    assert found["pred_masks_high_res"].shape == (2, 1, 64, 64)
    assert found["maskmem_features"].shape == (2, 64, 4, 4)
    assert found["maskmem_pos_enc"][0].shape == (2, 64, 4, 4)
    assert found["point_inputs"] is CLICK


def test_absent_objects_have_no_mask(model: SAM2Base) -> None:
    model.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.fill_(-9.0)
    found = track(model, 0, True, empty(), point_inputs=CLICK)
    assert (found["pred_masks"] == NO_OBJ_SCORE).all()
    assert torch.equal(found["obj_ptr"], model.no_obj_ptr.expand(2, -1))


def test_memories_change_the_mask_and_its_order_does_not(model: SAM2Base) -> None:
    memory = empty()
    memory["cond_frame_outputs"][0] = track(model, 0, True, memory, point_inputs=CLICK)
    alone = track(model, 2, False, memory)
    memory["non_cond_frame_outputs"][1] = track(model, 1, False, memory)
    both = track(model, 2, False, memory)
    assert not torch.equal(alone["pred_masks"], both["pred_masks"])
    unknown = track(model, 2, False, memory, num_frames=None)
    # 30 frames are as good as unboundedly many.
    assert torch.equal(unknown["pred_masks"], both["pred_masks"])


def test_the_memory_encoder_can_be_left_out(model: SAM2Base) -> None:
    found = track(model, 0, True, empty(), point_inputs=CLICK, run_mem_encoder=False)
    assert found["maskmem_features"] is None
    assert found["maskmem_pos_enc"] is None
    with pytest.raises(ValueError, match="run_mem_encoder=True"):
        track(model, 1, False, {"cond_frame_outputs": {0: found}, "non_cond_frame_outputs": {}})


def test_calls_without_meaning_are_refused(model: SAM2Base) -> None:
    with pytest.raises(ValueError, match="cond_frame_outputs"):
        track(model, 1, False, empty())
    with pytest.raises(ValueError, match="prev_sam_mask_logits"):
        track(model, 0, True, empty(), prev_sam_mask_logits=torch.zeros(2, 1, 16, 16))
    with pytest.raises(ValueError, match="high_res_features"):
        model._forward_sam_heads(torch.zeros(1, 256, 4, 4))


@pytest.mark.parametrize(
    ("first", "count", "expected"),
    [(True, 1, True), (True, 2, False), (True, 0, True), (False, 1, True)],
)
def test_use_multimask(model: SAM2Base, first: bool, count: int, expected: bool) -> None:
    points = {"point_labels": torch.ones(1, count)} if count else None
    assert model._use_multimask(first, points) is expected
    model.multimask_output_for_tracking = False
    assert model._use_multimask(first, points) is (expected and first)


def test_options_are_attributes(model: SAM2Base) -> None:
    assert model.fill_hole_area == 8
    model.fill_hole_area = 3
    assert model.options.fill_hole_area == 3
    with pytest.raises(ValueError, match="fill_hole_area"):
        model.fill_hole_area = "many"


def test_overlaps_are_removed_for_memories(model: SAM2Base) -> None:
    masks = torch.stack([torch.full((1, 4, 4), 3.0), torch.full((1, 4, 4), 5.0)])
    assert model._apply_non_overlapping_constraints(masks).flatten(1)[:, 0].tolist() == [-10.0, 5.0]
    _, features, _, sizes = model._prepare_backbone_features(
        model.forward_image(torch.ones(2, 3, 64, 64))
    )
    masks, presence = torch.randn(2, 1, 64, 64), torch.ones(2, 1)
    before = model._encode_new_memory(features, sizes, masks, presence, False)[0]
    model.non_overlap_masks_for_mem_enc = True
    assert not torch.equal(
        before, model._encode_new_memory(features, sizes, masks, presence, False)[0]
    )
