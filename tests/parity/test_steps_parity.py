"""The official low-level steps against the official model, step by step, on the official outputs of
the steps before.
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
    """The official model, ours, ours in float64."""
    theirs = official_image(*request.param, SIDE)
    state = theirs.state_dict()
    return (
        theirs,
        build_sam2(None, state, "cpu", image_size=SIDE),
        build_sam2(None, state, "cpu", image_size=SIDE, dtype=torch.float64),
    )


def backbone(
    model: Any, images: torch.Tensor
) -> tuple[list[torch.Tensor], list[torch.Tensor], list[tuple[int, int]]]:
    return model._prepare_backbone_features(model.forward_image(images))[1:]


def wide(value: Any) -> Any:
    """Tensors to float64, integers left alone, inside dictionaries and lists too."""
    if isinstance(value, torch.Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {k: wide(v) for k, v in value.items()}
    return (
        [wide(v) for v in value]
        if isinstance(value, (list, tuple)) and value and isinstance(value[0], torch.Tensor)
        else value
    )


@torch.no_grad()
@pytest.mark.parametrize(("reverse", "limit"), [(False, -1), (True, -1), (False, 2)])
def test_track_step_on_a_clip(
    models: tuple[Any, Any, Any], twice: Callable[..., None], reverse: bool, limit: int
) -> None:
    """A click, a mask and a correction, then tracking past 7 maps; memories of prompted frames on
    both sides of the frame.
    """
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(11, 2, 3, SIDE, SIDE, generator=generator)
    clicks = {
        "point_coords": torch.tensor([[[60.0, 70.0]], [[99.0, 20.0]]]),
        "point_labels": torch.ones(2, 1, dtype=torch.int32),
    }
    drawn = (torch.rand(2, 1, SIDE, SIDE, generator=generator) > 0.5).float()
    memory: dict[str, dict[int, Any]] = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}
    order = list(range(10, -1, -1)) if reverse else list(range(11))
    for model in models:
        model.max_cond_frames_in_attn = limit
    pooled: dict[str, list[tuple[torch.Tensor, ...]]] = {}
    for step, frame in enumerate(order):
        prompt = {0: (clicks, None, None), 4: (None, drawn, None), 5: (clicks, None, None)}.get(
            step, (None, None, None)
        )
        prompt = (
            (clicks, None, torch.randn(2, 1, SIDE // 4, SIDE // 4, generator=generator) * 8)
            if step == 6
            else prompt
        )
        first, outputs = step in (0, 5), []
        for model in models:
            image, given, past = images[frame], prompt, memory
            if model is models[2]:
                image, given, past = image.double(), tuple(wide(p) for p in prompt), wide(memory)
            features, positions, sizes = backbone(model, image)
            outputs.append(
                model.track_step(
                    frame,
                    first,
                    features,
                    positions,
                    sizes,
                    given[0],
                    given[1],
                    past,
                    11,
                    reverse,
                    True,
                    given[2],
                )
            )
        theirs, mine, exact = outputs
        assert list(theirs) == list(mine)
        for key in (
            "pred_masks",
            "pred_masks_high_res",
            "obj_ptr",
            "object_score_logits",
            "maskmem_features",
        ):
            assert mine[key].shape == theirs[key].shape
            pooled.setdefault(key, []).append(
                tuple(x[key].double().flatten() for x in (theirs, mine, exact))
            )
        twice(
            "position",
            mine["maskmem_pos_enc"][0],
            theirs["maskmem_pos_enc"][0],
            exact["maskmem_pos_enc"][0],
        )
        memory["cond_frame_outputs" if step in (0, 4, 5) else "non_cond_frame_outputs"][frame] = (
            theirs
        )
    for key, triples in pooled.items():
        theirs, mine, exact = (torch.cat(parts) for parts in zip(*triples, strict=True))
        twice(key, mine, theirs, exact)


@torch.no_grad()
def test_heads(models: tuple[Any, Any, Any], twice: Callable[..., None]) -> None:
    """All seven outputs, with masks of any size as hints, with and without three masks."""
    generator = torch.Generator().manual_seed(0)
    side = SIDE // 16
    low, fine = (
        torch.randn(2, 256, side, side, generator=generator),
        [
            torch.randn(2, 32, 4 * side, 4 * side, generator=generator),
            torch.randn(2, 64, 2 * side, 2 * side, generator=generator),
        ],
    )
    hint = torch.randn(2, 1, SIDE, SIDE, generator=generator) * 5
    pooled: list[list[torch.Tensor]] = [[], [], []]
    for multimask in (True, False):
        for mask in (None, hint, hint[..., : SIDE // 4, : SIDE // 4]):
            for i, model in enumerate(models):
                convert = wide if i == 2 else lambda value: value
                mask_i = convert(mask) if mask is not None else None
                out = model._forward_sam_heads(convert(low), None, mask_i, convert(fine), multimask)
                pooled[i].append(torch.cat([part.double().flatten() for part in out]))
    theirs, mine, exact = (torch.cat(p) for p in pooled)
    twice("heads", mine, theirs, exact)


@torch.no_grad()
def test_drawn_masks(models: tuple[Any, Any, Any], twice: Callable[..., None]) -> None:
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
    twice("drawn", pooled[1], pooled[0], pooled[2])


def test_attributes(models: tuple[Any, Any, Any]) -> None:
    """What third parties read off the model has the official value."""
    names = [
        "image_size",
        "num_maskmem",
        "hidden_dim",
        "mem_dim",
        "max_obj_ptrs_in_encoder",
        "num_feature_levels",
        "directly_add_no_mem_embed",
        "memory_temporal_stride_for_eval",
        "backbone_stride",
        "sam_prompt_embed_dim",
        "sam_image_embedding_size",
        "use_obj_ptrs_in_encoder",
        "pred_obj_scores",
        "pred_obj_scores_mlp",
        "fixed_no_obj_ptr",
        "soft_no_obj_ptr",
        "use_multimask_token_for_obj_ptr",
        "use_mlp_for_obj_ptr_proj",
        "use_mask_input_as_output_without_sam",
        "only_obj_ptrs_in_the_past_for_eval",
        "iou_prediction_use_sigmoid",
        "sigmoid_scale_for_mem_enc",
        "sigmoid_bias_for_mem_enc",
        "use_high_res_features_in_sam",
        "multimask_output_in_sam",
        "multimask_min_pt_num",
        "multimask_max_pt_num",
        "multimask_output_for_tracking",
        "binarize_mask_from_pts_for_mem_enc",
        "non_overlap_masks_for_mem_enc",
    ]
    theirs, mine, _ = models
    assert {n: getattr(mine, n) for n in names} == {n: getattr(theirs, n) for n in names}
    assert torch.equal(mine.no_mem_embed, theirs.no_mem_embed)
