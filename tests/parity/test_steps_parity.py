"""Our low-level steps against the official model.

Every step gets the official outputs of the steps before it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sam2_fast.build_sam import build_sam2

SIDE = 128


@pytest.fixture(scope="module", params=[("t", "sam2.1"), ("t", "sam2")], ids=["2.1", "2.0"])
def models(
    request: pytest.FixtureRequest, official_image: Callable[..., Any]
) -> tuple[Any, Any, Any]:
    """The official model, ours, and ours in float64."""
    official = official_image(*request.param, SIDE)
    state = official.state_dict()
    return (
        official,
        build_sam2(None, state, "cpu", image_size=SIDE),
        build_sam2(None, state, "cpu", image_size=SIDE, dtype=torch.float64),
    )


def backbone(
    model: Any, images: torch.Tensor
) -> tuple[list[torch.Tensor], list[torch.Tensor], list[tuple[int, int]]]:
    return model._prepare_backbone_features(model.forward_image(images))[1:]


def in_float64(value: Any) -> Any:
    """Floating-point tensors as float64, also those in dictionaries and lists."""
    if isinstance(value, torch.Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {k: in_float64(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], torch.Tensor):
        return [in_float64(v) for v in value]
    return value


@torch.no_grad()
@pytest.mark.parametrize(("reverse", "limit"), [(False, -1), (True, -1), (False, 2)])
def test_track_step_equals_the_official_one(
    models: tuple[Any, Any, Any],
    assert_within_twice: Callable[..., None],
    reverse: bool,
    limit: int,
) -> None:
    """A click, a mask and a correction, then tracking on more frames than the 7 of the memory.

    There are memories of prompted frames before and after the frame.
    """
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(11, 2, 3, SIDE, SIDE, generator=generator)
    clicks = {
        "point_coords": torch.tensor([[[60.0, 70.0]], [[99.0, 20.0]]]),
        "point_labels": torch.ones(2, 1, dtype=torch.int32),
    }
    mask = (torch.rand(2, 1, SIDE, SIDE, generator=generator) > 0.5).float()
    memory: dict[str, dict[int, Any]] = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}
    order = list(range(10, -1, -1)) if reverse else list(range(11))
    for model in models:
        model.max_cond_frames_in_attn = limit
    pooled: dict[str, list[tuple[torch.Tensor, ...]]] = {}
    for step, frame in enumerate(order):
        prompt = (None, None, None)
        if step in (0, 5):
            prompt = (clicks, None, None)
        elif step == 4:
            prompt = (None, mask, None)
        elif step == 6:
            hint = torch.randn(2, 1, SIDE // 4, SIDE // 4, generator=generator) * 8
            prompt = (clicks, None, hint)
        outputs = []
        for model in models:
            cast = in_float64 if model is models[2] else lambda value: value
            points, mask_inputs, previous_logits = (cast(p) for p in prompt)
            outputs.append(
                model.track_step(
                    frame,
                    step in (0, 5),
                    *backbone(model, cast(images[frame])),
                    points,
                    mask_inputs,
                    cast(memory),
                    11,
                    reverse,
                    True,
                    previous_logits,
                )
            )
        official, ours, exact = outputs
        assert list(official) == list(ours)
        for key in (
            "pred_masks",
            "pred_masks_high_res",
            "obj_ptr",
            "object_score_logits",
            "maskmem_features",
        ):
            assert ours[key].shape == official[key].shape
            pooled.setdefault(key, []).append(
                tuple(x[key].double().flatten() for x in (official, ours, exact))
            )
        positions = [x["maskmem_pos_enc"][0] for x in (ours, official, exact)]
        assert_within_twice("position", *positions)
        kind = "cond_frame_outputs" if step in (0, 4, 5) else "non_cond_frame_outputs"
        memory[kind][frame] = official
    for key, triples in pooled.items():
        official, ours, exact = (torch.cat(parts) for parts in zip(*triples, strict=True))
        assert_within_twice(key, ours, official, exact)


@torch.no_grad()
def test_heads_equal_the_official_ones(
    models: tuple[Any, Any, Any], assert_within_twice: Callable[..., None]
) -> None:
    """All seven outputs, with hints of two sizes or none, for one and for three masks."""
    generator = torch.Generator().manual_seed(0)
    side = SIDE // 16
    low = torch.randn(2, 256, side, side, generator=generator)
    fine = [
        torch.randn(2, 32, 4 * side, 4 * side, generator=generator),
        torch.randn(2, 64, 2 * side, 2 * side, generator=generator),
    ]
    hint = torch.randn(2, 1, SIDE, SIDE, generator=generator) * 5
    pooled: list[list[torch.Tensor]] = [[], [], []]
    for multimask in (True, False):
        for mask in (None, hint, hint[..., : SIDE // 4, : SIDE // 4]):
            for i, model in enumerate(models):
                cast = in_float64 if i == 2 else lambda value: value
                out = model._forward_sam_heads(cast(low), None, cast(mask), cast(fine), multimask)
                pooled[i].append(torch.cat([part.double().flatten() for part in out]))
    official, ours, exact = (torch.cat(p) for p in pooled)
    assert_within_twice("heads", ours, official, exact)


@torch.no_grad()
def test_outputs_of_mask_prompts_equal_the_official_ones(
    models: tuple[Any, Any, Any], assert_within_twice: Callable[..., None]
) -> None:
    """All seven outputs; one object has an empty mask."""
    features = [
        backbone(model, torch.ones(2, 3, SIDE, SIDE, dtype=model.no_mem_embed.dtype))
        for model in models
    ]
    mask = torch.zeros(2, 1, SIDE, SIDE)
    mask[0, 0, 30:90, 50:200] = 1
    pooled = []
    for i, (model, (levels, _, sizes)) in enumerate(zip(models, features, strict=True)):
        high, mid, low = (
            x.permute(1, 2, 0).unflatten(2, size) for x, size in zip(levels, sizes, strict=True)
        )
        out = model._use_mask_as_output(low, [high, mid], mask.double() if i == 2 else mask)
        pooled.append(torch.cat([part.double().flatten() for part in out]))
    assert_within_twice("mask prompts", pooled[1], pooled[0], pooled[2])


ATTRIBUTES = """
    image_size num_maskmem hidden_dim mem_dim max_obj_ptrs_in_encoder num_feature_levels
    directly_add_no_mem_embed memory_temporal_stride_for_eval backbone_stride sam_prompt_embed_dim
    sam_image_embedding_size use_obj_ptrs_in_encoder pred_obj_scores pred_obj_scores_mlp
    fixed_no_obj_ptr soft_no_obj_ptr use_multimask_token_for_obj_ptr use_mlp_for_obj_ptr_proj
    use_mask_input_as_output_without_sam only_obj_ptrs_in_the_past_for_eval
    iou_prediction_use_sigmoid sigmoid_scale_for_mem_enc sigmoid_bias_for_mem_enc
    use_high_res_features_in_sam multimask_output_in_sam multimask_min_pt_num multimask_max_pt_num
    multimask_output_for_tracking binarize_mask_from_pts_for_mem_enc non_overlap_masks_for_mem_enc
"""


def test_attributes_have_the_official_values(models: tuple[Any, Any, Any]) -> None:
    official, ours, _ = models
    for name in ATTRIBUTES.split():
        assert getattr(ours, name) == getattr(official, name), name
    assert torch.equal(ours.no_mem_embed, official.no_mem_embed)
