"""Twelve details that an implementation of SAM 2 can get wrong without any error, one test each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from sam2_fast.build_sam import build_sam2, build_sam2_video_predictor
from sam2_fast.config import NO_OBJECT_LOGIT, PRESETS, Sam2Config
from sam2_fast.masks import fill_holes, remove_holes_and_specks
from sam2_fast.model.hiera import Hiera
from sam2_fast.model.object_pointer import split_pointers
from sam2_fast.ops.memory_attention import Memories
from sam2_fast.ops.rope_attention import rope_attention, rope_table, rotate
from sam2_fast.ops.window_attention import window_attention
from sam2_fast.recording.runner import Runner
from sam2_fast.types import Points
from sam2_fast.video.cached_features import features_of


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_trap_01_padded_tokens_attend_as_unmasked_keys(backend: str) -> None:
    qkv = torch.randn(1, 3, 3, 12)
    pad = torch.randn(12)
    padded = pad.expand(1, 4, 4, 12).clone()
    padded[:, :3, :3] = qkv
    output = window_attention(qkv, pad, 2, 4, backend=backend)
    expected = window_attention(padded, pad, 2, 4, backend=backend)[:, :3, :3]
    assert torch.allclose(output, expected, atol=1e-6)
    without_padding = window_attention(qkv, pad, 2, 0, backend=backend)
    assert (output - without_padding).abs().max() > 1e-3


def test_trap_02_a_stage_starts_with_the_window_of_the_stage_before_and_pools_queries() -> None:
    windows = {
        name: [b.window_size for b in Hiera.from_config(config).blocks]
        for name, config in PRESETS.items()
        if name != "large"
    }
    assert windows["tiny"] == [8, 8, 4, 4, 14, 0, 14, 0, 14, 0, 14, 7]
    pools = [b.pool for b in Hiera.from_config(PRESETS["tiny"]).blocks]
    assert [i for i, pool in enumerate(pools) if pool] == [1, 3, 10]
    qkv = torch.randn(1, 8, 8, 12)
    pooled = window_attention(qkv, torch.zeros(12), 1, 4, pool=True)
    q, k, v = qkv[:, :4, 4:8].split(4, dim=-1)  # the window in row 0, column 1
    q = F.max_pool2d(q.permute(0, 3, 1, 2), 2).flatten(2).transpose(1, 2)
    weights = (q @ k.flatten(1, 2).transpose(1, 2) / 2).softmax(-1)
    assert torch.allclose(pooled[:, :2, 2:4].flatten(1, 2), weights @ v.flatten(1, 2), atol=1e-6)


def test_trap_03_rotation_repeats_per_map_and_pointers_are_four_unrotated_tokens() -> None:
    table = rope_table(8, 2)
    q = torch.randn(1, 4, 8)
    maps = torch.randn(1, 8, 8)
    pointers = torch.randn(1, 3, 8)
    v = torch.randn(1, 11, 8)
    keys = torch.cat([rotate(maps[:, :4], table), rotate(maps[:, 4:], table), pointers], dim=1)
    weights = (rotate(q, table) @ keys.transpose(1, 2) / 8**0.5).softmax(-1)
    output = rope_attention(q, torch.cat([maps, pointers], 1), v, table, 3)
    assert torch.allclose(output, weights @ v, atol=1e-6)
    pointer = torch.arange(256.0).view(1, 1, 256)
    assert torch.equal(split_pointers(pointer, 64), torch.arange(256.0).view(1, 4, 64))


def test_trap_04_prompted_maps_use_row_six_and_ages_are_divided_by_the_maximum(
    predictor: Any,
) -> None:
    low = torch.randn(1, 256, 4, 4)
    maps = torch.randn(1, 1, 16, 64)
    pointers = torch.randn(1, 1, 256)

    def run(row: int, age: float, maximum: int) -> torch.Tensor:
        return predictor.attend(low, maps, [[row]], pointers, [[age]], maximum)

    with torch.no_grad():
        assert torch.equal(run(6, 4.0, 8), run(6, 2.0, 4))
        assert not torch.equal(run(6, 4.0, 8), run(5, 4.0, 8))
        assert not torch.equal(run(6, 4.0, 8), run(6, 4.0, 15))


def test_trap_05_a_tenth_of_the_position_is_added_to_the_input_of_memory_attention(
    predictor: Any,
) -> None:
    attention = predictor.memory_attention
    x = torch.randn(1, 16, 256)
    position = torch.randn(1, 16, 256)
    memory = torch.randn(16, 64)
    memories = Memories([memory], [0], [0], [0, 1], torch.zeros(0, 64), torch.zeros(0, 64), [0, 0])
    others = (memories, torch.zeros(1, 64), memory)
    with torch.no_grad():
        weights = attention.op_weights(x)
        output = attention.run_op(x, weights, position, *others)
        moved = x + 0.1 * position
        expected = attention.run_op(moved, weights, torch.zeros_like(position), *others)
    assert torch.equal(output, expected)


def features_of_frame_0(predictor: Any, state: Any) -> Any:
    return features_of(state, 0, Runner(predictor, None))


def test_trap_06_memories_of_prompted_frames_encode_binarised_masks_of_tracked_ones_raw_logits(
    predictor: Any, clip: Any
) -> None:
    state = predictor.init_state(clip)
    predictor.add_new_points_or_box(state, 0, 1, [[20, 20]], [1])
    stored = state.objects[1].previews[0].logits
    predictor.propagate_in_video_preflight(state)
    memory = state.objects[1].bank.prompted[0]
    low = features_of_frame_0(predictor, state).low
    with torch.inference_mode():
        large = F.interpolate(stored[None], size=(64, 64), mode="bilinear", align_corners=False)
        binarised, raw = (
            predictor.encode_memory(low, large, memory.presence[None], binarize)[0]
            for binarize in (True, False)
        )
    assert torch.equal(memory.map, binarised)
    assert not torch.equal(memory.map, raw)
    calls: list[tuple[torch.Tensor, bool]] = []
    original = predictor.encode_memory
    predictor.encode_memory = lambda low, logits, presence, binarize: (
        calls.append((logits, binarize)) or original(low, logits, presence, binarize)
    )
    try:
        frame, _, _ = next(iter(predictor.propagate_in_video(state, start_frame_idx=1)))
    finally:
        del predictor.encode_memory
    logits, binarize = calls[-1]
    assert frame == 1 and not binarize
    assert torch.equal(fill_holes(logits, 8)[0], state.objects[1].bank.tracked[1].logits)


def test_trap_07_hints_are_clamped_and_absent_objects_have_logits_of_minus_1024(
    predictor: Any, clip: Any, monkeypatch: Any
) -> None:
    state = predictor.init_state(clip)
    predictor.add_new_points_or_box(state, 0, 1, [[20, 20]], [1])
    preview = state.objects[1].previews[0]
    preview["pred_masks"] = preview["pred_masks"] * 1000
    hints = []
    original = predictor.track
    monkeypatch.setattr(
        predictor,
        "track",
        lambda low, f, points, hint, multi: (
            hints.append(hint) or original(low, f, points, hint, multi)
        ),
    )
    predictor.add_new_points_or_box(state, 0, 1, [[22, 22]], [1], clear_old_points=False)
    assert hints[0].abs().max() == 32.0
    monkeypatch.undo()
    features = features_of_frame_0(predictor, state)
    bias = predictor.sam_mask_decoder.pred_obj_score_head.layers[-1].bias
    with torch.no_grad():
        bias.sub_(100)
        try:
            points = Points(torch.zeros(1, 1, 2), torch.ones(1, 1, dtype=torch.int32))
            logits, _, presence = predictor.track(features.low, features, points, None, True)
        finally:
            bias.add_(100)
    assert presence < 0 and (logits == NO_OBJECT_LOGIT).all()


def test_trap_08_values_connectivity_and_area_of_filled_holes() -> None:
    logits = torch.full((1, 1, 20, 20), 3.0)
    logits[..., 2, 2:10] = -1.0  # 8 pixels: a hole
    logits[..., 6, 2:11] = -1.0  # 9 pixels: too large for a hole
    diagonal = [(12 + i, 2 + i) for i in range(4)]
    for y, x in diagonal:
        logits[..., y, x] = -1.0  # 4 pixels that touch at corners only: one hole
    filled = fill_holes(logits, 8)
    assert (filled[..., 2, 2:10] == torch.tensor(0.1)).all()
    assert (filled[..., 6, 2:11] == -1.0).all()
    assert all(filled[0, 0, y, x] == torch.tensor(0.1) for y, x in diagonal)
    image = remove_holes_and_specks(logits, threshold=0.0, max_hole_area=8, max_speck_area=0)
    assert (image[..., 2, 2:10] == 10.0).all()


def test_trap_09_overlaps_are_removed_in_the_output_only(make_predictor: Any, clip: Any) -> None:
    maps = []
    for options in ({}, {"non_overlap_masks": True}):
        predictor = make_predictor(**options)
        state = predictor.init_state(clip)
        predictor.add_new_points_or_box(state, 0, 1, [[20, 20]], [1])
        predictor.add_new_points_or_box(state, 0, 2, [[24, 20]], [1])
        outputs = list(predictor.propagate_in_video(state, max_frame_num_to_track=2))
        maps.append([state.objects[2].bank.tracked[frame].map for frame in (1, 2)])
    assert all(((masks > 0).sum(0) <= 1).all() for _, _, masks in outputs)
    assert all(torch.equal(a, b) for a, b in zip(*maps, strict=True))


def test_trap_10_a_click_uses_memories_on_a_tracked_frame_but_not_on_an_untracked_one(
    predictor: Any, clip: Any, monkeypatch: Any
) -> None:
    calls = []
    original = predictor.attend
    monkeypatch.setattr(predictor, "attend", lambda *a: calls.append(1) or original(*a))
    state = predictor.init_state(clip)
    predictor.add_new_points_or_box(state, 0, 1, [[20, 20]], [1])
    predictor.add_new_points_or_box(state, 5, 1, [[30, 20]], [1])
    assert not calls
    list(predictor.propagate_in_video(state, max_frame_num_to_track=3))
    calls.clear()
    predictor.add_new_points_or_box(state, 2, 1, [[24, 20]], [0])
    assert len(calls) == 1
    predictor.add_new_points_or_box(state, 9, 1, [[30, 20]], [1])
    assert len(calls) == 1


@pytest.mark.parametrize("build", [build_sam2, build_sam2_video_predictor])
def test_trap_11_postprocessing_includes_dynamic_multimask(build: Any) -> None:
    config = Sam2Config(
        embed_dim=16, stages=(1, 1, 1, 1), global_blocks=(), image_size=64, memory_layers=1
    )
    on = build(config, device="cpu")
    off = build(config, device="cpu", apply_postprocessing=False)
    assert on.dynamic_multimask_via_stability and not off.dynamic_multimask_via_stability
    assert on.dynamic_multimask_stability_delta == 0.05
    assert on.dynamic_multimask_stability_thresh == 0.98
    is_video = build is build_sam2_video_predictor
    assert on.fill_hole_area == (8 if is_video else 0)
    assert on.binarize_mask_from_pts_for_mem_enc == is_video


def test_trap_12_a_reverse_pass_uses_the_memories_of_the_forward_pass(
    predictor: Any, clip: Any, masks_of: Any
) -> None:
    def track_backward(forward_first: bool) -> Any:
        state = predictor.init_state(clip)
        predictor.add_new_points_or_box(state, 10, 1, [[30, 20]], [1])
        if forward_first:
            list(predictor.propagate_in_video(state))
        return masks_of(predictor.propagate_in_video(state, reverse=True))

    after_forward = track_backward(True)
    only_backward = track_backward(False)
    assert list(after_forward) == list(range(10, -1, -1))
    assert torch.equal(after_forward[10], only_backward[10])
    assert not torch.equal(after_forward[9], only_backward[9])
