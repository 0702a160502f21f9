"""`SAM2Base`: the official low-level methods equal our methods, and refuse invalid arguments."""

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
        random_model = SAM2Base(SMALL, Options(**VIDEO_POSTPROCESSING)).eval()
        for parameter in random_model.parameters():
            if parameter.numel() > 1 and parameter.std() < 1e-5:
                parameter.add_(torch.randn(parameter.shape) * 0.2)
        random_model.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.fill_(2.0)
    return random_model.requires_grad_(False)


def random_images(seed: int) -> torch.Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def track(
    model: SAM2Base, frame: int, first: bool, memory: dict[str, Any], **arguments: Any
) -> dict[str, Any]:
    backbone = model.forward_image(random_images(frame))
    _, features, positions, sizes = model._prepare_backbone_features(backbone)
    prompts = {"point_inputs": None, "mask_inputs": None}
    defaults = {**prompts, "output_dict": memory, "num_frames": 30}
    return model.track_step(frame, first, features, positions, sizes, **{**defaults, **arguments})


def no_memory() -> dict[str, dict[int, Any]]:
    return {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}


def shapes(tensors: list[torch.Tensor]) -> list[tuple[int, ...]]:
    return [tuple(x.shape) for x in tensors]


def test_features_have_the_official_layouts(model: SAM2Base) -> None:
    out = model.forward_image(torch.zeros(2, 3, 64, 64))
    sides = (16, 8, 4)
    channels = (32, 64, 256)
    assert shapes(out["backbone_fpn"]) == [
        (2, c, s, s) for c, s in zip(channels, sides, strict=True)
    ]
    assert shapes(out["vision_pos_enc"]) == [(2, 256, s, s) for s in sides]
    copy, features, positions, sizes = model._prepare_backbone_features(out)
    assert copy is not out
    assert sizes == [(16, 16), (8, 8), (4, 4)]
    assert shapes(features) == [(256, 2, 32), (64, 2, 64), (16, 2, 256)]
    assert shapes(positions) == [(256, 2, 256), (64, 2, 256), (16, 2, 256)]


def test_a_click_gives_the_results_of_the_method_track(model: SAM2Base) -> None:
    outputs = track(model, 0, True, no_memory(), point_inputs=CLICK)
    features = model.encode_image(random_images(0))
    points = Points(CLICK["point_coords"], CLICK["point_labels"])
    logits, pointer, presence = model.track(
        model.without_memory(features.low), features, points, None, True
    )
    assert torch.equal(outputs["pred_masks"], logits)
    assert torch.equal(outputs["obj_ptr"], pointer)
    assert torch.equal(outputs["object_score_logits"], presence)
    assert outputs["pred_masks_high_res"].shape == (2, 1, 64, 64)
    assert outputs["maskmem_features"].shape == (2, 64, 4, 4)
    assert outputs["maskmem_pos_enc"][0].shape == (2, 64, 4, 4)
    assert outputs["point_inputs"] is CLICK


def test_absent_objects_have_no_mask(model: SAM2Base) -> None:
    model.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.fill_(-9.0)
    outputs = track(model, 0, True, no_memory(), point_inputs=CLICK)
    assert (outputs["pred_masks"] == NO_OBJ_SCORE).all()
    assert torch.equal(outputs["obj_ptr"], model.no_obj_ptr.expand(2, -1))


def test_memories_change_the_mask(model: SAM2Base) -> None:
    memory = no_memory()
    memory["cond_frame_outputs"][0] = track(model, 0, True, memory, point_inputs=CLICK)
    one_memory = track(model, 2, False, memory)
    memory["non_cond_frame_outputs"][1] = track(model, 1, False, memory)
    two_memories = track(model, 2, False, memory)
    assert not torch.equal(one_memory["pred_masks"], two_memories["pred_masks"])
    # An unknown number of frames counts as large, like 30 frames.
    unknown = track(model, 2, False, memory, num_frames=None)
    assert torch.equal(unknown["pred_masks"], two_memories["pred_masks"])


def test_the_memory_encoder_can_be_left_out(model: SAM2Base) -> None:
    outputs = track(model, 0, True, no_memory(), point_inputs=CLICK, run_mem_encoder=False)
    assert outputs["maskmem_features"] is None
    assert outputs["maskmem_pos_enc"] is None
    with pytest.raises(ValueError, match="run_mem_encoder=True"):
        track(model, 1, False, {"cond_frame_outputs": {0: outputs}, "non_cond_frame_outputs": {}})


def test_invalid_calls_are_refused(model: SAM2Base) -> None:
    with pytest.raises(ValueError, match="cond_frame_outputs"):
        track(model, 1, False, no_memory())
    with pytest.raises(ValueError, match="prev_sam_mask_logits"):
        track(model, 0, True, no_memory(), prev_sam_mask_logits=torch.zeros(2, 1, 16, 16))
    with pytest.raises(ValueError, match="high_res_features"):
        model._forward_sam_heads(torch.zeros(1, 256, 4, 4))


@pytest.mark.parametrize(
    ("first", "count", "expected"),
    [(True, 1, True), (True, 2, False), (True, 0, True), (False, 1, True)],
)
def test_three_masks_are_predicted_for_at_most_one_click(
    model: SAM2Base, first: bool, count: int, expected: bool
) -> None:
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


def test_overlaps_can_be_removed_before_memories_are_encoded(model: SAM2Base) -> None:
    masks = torch.stack([torch.full((1, 4, 4), 3.0), torch.full((1, 4, 4), 5.0)])
    assert model._apply_non_overlapping_constraints(masks).flatten(1)[:, 0].tolist() == [-10.0, 5.0]
    backbone = model.forward_image(torch.ones(2, 3, 64, 64))
    _, features, _, sizes = model._prepare_backbone_features(backbone)
    arguments = (features, sizes, torch.randn(2, 1, 64, 64), torch.ones(2, 1), False)
    before = model._encode_new_memory(*arguments)[0]
    model.non_overlap_masks_for_mem_enc = True
    assert not torch.equal(before, model._encode_new_memory(*arguments)[0])
