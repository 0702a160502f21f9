"""The twelve places where an implementation of SAM 2 goes wrong quietly, one
test (or more) each.
"""

from __future__ import annotations

from dataclasses import replace
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


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_trap_01_padded_tokens_attend_as_unmasked_keys(backend: str) -> None:
    qkv, pad = torch.randn(1, 3, 3, 12), torch.randn(12)
    whole = pad.expand(1, 4, 4, 12).clone()
    whole[:, :3, :3] = qkv
    found = window_attention(qkv, pad, 2, 4, backend=backend)
    assert torch.allclose(
        found, window_attention(whole, pad, 2, 4, backend=backend)[:, :3, :3], atol=1e-6
    )
    alone = window_attention(qkv, pad, 2, 0, backend=backend)  # without the padding
    assert (found - alone).abs().max() > 1e-3


def test_trap_02_a_stage_starts_with_the_window_before_it_and_pools_queries_inside() -> None:
    windows = {
        name: [b.window for b in Hiera(config).blocks]
        for name, config in PRESETS.items()
        if name != "large"
    }
    assert windows["tiny"] == [8, 8, 4, 4, 14, 0, 14, 0, 14, 0, 14, 7]
    pools = [b.pool for b in Hiera(PRESETS["tiny"]).blocks]
    assert [i for i, pool in enumerate(pools) if pool] == [1, 3, 10]
    qkv = torch.randn(1, 8, 8, 12)
    pooled = window_attention(qkv, torch.zeros(12), 1, 4, pool=True)
    q, k, v = qkv[:, :4, 4:8].split(4, dim=-1)  # the window in row 0, column 1
    q = F.max_pool2d(q.permute(0, 3, 1, 2), 2).flatten(2).transpose(1, 2)
    weights = (q @ k.flatten(1, 2).transpose(1, 2) / 2).softmax(-1)
    assert torch.allclose(pooled[:, :2, 2:4].flatten(1, 2), weights @ v.flatten(1, 2), atol=1e-6)


def test_trap_03_rotation_repeats_per_map_and_pointers_are_four_unrotated_tokens() -> None:
    table = rope_table(8, 2)
    q, maps, pointers = torch.randn(1, 4, 8), torch.randn(1, 8, 8), torch.randn(1, 3, 8)
    v = torch.randn(1, 11, 8)
    keys = torch.cat([rotate(maps[:, :4], table), rotate(maps[:, 4:], table), pointers], dim=1)
    weights = (rotate(q, table) @ keys.transpose(1, 2) / 8**0.5).softmax(-1)
    assert torch.allclose(
        rope_attention(q, torch.cat([maps, pointers], 1), v, table, 3), weights @ v, atol=1e-6
    )
    pointer = torch.arange(256.0).view(1, 1, 256)
    assert torch.equal(split_pointers(pointer, 64), torch.arange(256.0).view(1, 4, 64))


def test_trap_04_prompted_maps_take_row_six_and_ages_are_scaled_by_the_longest(
    predictor: Any,
) -> None:
    model = predictor
    low, side = torch.randn(1, 256, 4, 4), 16
    maps, pointers = torch.randn(1, 1, side, 64), torch.randn(1, 1, 256)

    def run(row: int, age: float, longest: int) -> torch.Tensor:
        return model.attend(low, maps, [[row]], pointers, [[age]], longest)

    with torch.no_grad():
        assert torch.equal(run(6, 4.0, 8), run(6, 2.0, 4))
        assert not torch.equal(run(6, 4.0, 8), run(5, 4.0, 8))
        assert not torch.equal(run(6, 4.0, 8), run(6, 4.0, 15))


def test_trap_05_a_tenth_of_the_position_is_added_to_the_input_of_memory_attention(
    predictor: Any,
) -> None:
    attention = predictor.memory_attention
    x, position, memory = torch.randn(1, 16, 256), torch.randn(1, 16, 256), torch.randn(16, 64)
    memories = Memories([memory], [0], [0], [0, 1], torch.zeros(0, 64), torch.zeros(0, 64), [0, 0])
    with torch.no_grad():
        a = attention(x, position, memories, torch.zeros(1, 64), memory)
        b = attention(
            x + 0.1 * position, torch.zeros_like(position), memories, torch.zeros(1, 64), memory
        )
    assert torch.equal(a, b)


def features_of(predictor: Any, state: Any) -> Any:
    return state.features.get(0, Runner(predictor, None))


def test_trap_06_prompted_memory_is_the_stored_mask_binarised_tracked_memory_the_raw_one(
    predictor: Any, clip: Any
) -> None:
    state = predictor.init_state(clip)
    predictor.add_new_points_or_box(state, 0, 1, [[20, 20]], [1])
    stored = state.objects[1].previews[0].logits
    predictor.propagate_in_video_preflight(state)
    memory = state.objects[1].bank.prompted[0]
    low = features_of(predictor, state).low
    with torch.inference_mode():
        large = F.interpolate(stored[None], size=(64, 64), mode="bilinear", align_corners=False)
        assert torch.equal(
            memory.map, predictor.encode_memory(low, large, memory.presence[None], True)[0]
        )
        assert not torch.equal(
            memory.map, predictor.encode_memory(low, large, memory.presence[None], False)[0]
        )
    seen: list[tuple[torch.Tensor, bool]] = []
    original = predictor.encode_memory
    predictor.encode_memory = lambda low, logits, presence, binarize: (
        seen.append((logits, binarize)) or original(low, logits, presence, binarize)
    )
    try:
        tracker_frame = next(iter(predictor.propagate_in_video(state, start_frame_idx=1)))
    finally:
        del predictor.encode_memory
    raw, binarize = seen[-1]
    assert tracker_frame[0] == 1 and not binarize
    assert torch.equal(fill_holes(raw, 8)[0], state.objects[1].bank.tracked[1].logits)


def test_trap_07_hints_are_clamped_and_absent_objects_get_minus_1024(
    predictor: Any, clip: Any, monkeypatch: Any
) -> None:
    state = predictor.init_state(clip)
    predictor.add_new_points_or_box(state, 0, 1, [[20, 20]], [1])
    preview = state.objects[1].previews[0]
    state.objects[1].previews[0] = replace(preview, logits=preview.logits * 1000)
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
    features = features_of(predictor, state)
    bias = predictor.sam_mask_decoder.pred_obj_score_head.layers[-1].bias
    with torch.no_grad():
        bias.sub_(100)
        try:
            points = Points(torch.zeros(1, 1, 2), torch.ones(1, 1, dtype=torch.int32))
            logits, _, presence = predictor.track(features.low, features, points, None, True)
        finally:
            bias.add_(100)
    assert presence < 0 and (logits == NO_OBJECT_LOGIT).all()


def test_trap_08_hole_values_connectivity_and_area() -> None:
    logits = torch.full((1, 1, 20, 20), 3.0)
    logits[..., 2, 2:10] = -1.0  # 8 pixels: a hole
    logits[..., 6, 2:11] = -1.0  # 9 pixels: none
    diagonal = [(12 + i, 2 + i) for i in range(4)]
    for y, x in diagonal:
        logits[..., y, x] = -1.0  # 4 pixels that touch at corners only: one hole
    filled = fill_holes(logits, 8)
    assert (filled[..., 2, 2:10] == torch.tensor(0.1)).all() and (
        filled[..., 6, 2:11] == -1.0
    ).all()
    assert all(filled[0, 0, y, x] == torch.tensor(0.1) for y, x in diagonal)
    image = remove_holes_and_specks(logits, threshold=0.0, max_hole_area=8, max_speck_area=0)
    assert (image[..., 2, 2:10] == 10.0).all()


def test_trap_09_overlaps_are_removed_on_the_output_only(make_predictor: Any, clip: Any) -> None:
    plain, apart = make_predictor(), make_predictor(non_overlap_masks=True)
    states = []
    for predictor in (plain, apart):
        state = predictor.init_state(clip)
        predictor.add_new_points_or_box(state, 0, 1, [[20, 20]], [1])
        predictor.add_new_points_or_box(state, 0, 2, [[24, 20]], [1])
        outputs = list(predictor.propagate_in_video(state, max_frame_num_to_track=2))
        states.append((state, outputs))
    (a, _), (b, outputs) = states
    assert all(((masks > 0).sum(0) <= 1).all() for _, _, masks in outputs)
    for frame in (1, 2):
        assert torch.equal(
            a.objects[2].bank.tracked[frame].map, b.objects[2].bank.tracked[frame].map
        )


def test_trap_10_a_click_uses_memory_on_a_tracked_frame_and_not_on_an_unseen_one(
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
def test_trap_11_postprocessing_switches_dynamic_multimask_on(build: Any) -> None:
    config = Sam2Config(
        embed_dim=16, stages=(1, 1, 1, 1), global_blocks=(), image_size=64, memory_layers=1
    )
    on, off = build(config, device="cpu"), build(config, device="cpu", apply_postprocessing=False)
    assert on.dynamic_multimask_via_stability and not off.dynamic_multimask_via_stability
    assert (on.dynamic_multimask_stability_delta, on.dynamic_multimask_stability_thresh) == (
        0.05,
        0.98,
    )
    video = build is build_sam2_video_predictor
    assert (
        on.fill_hole_area == (8 if video else 0) and on.binarize_mask_from_pts_for_mem_enc == video
    )


def test_trap_12_a_reverse_pass_reads_what_the_forward_pass_wrote(
    predictor: Any, clip: Any, masks_of: Any
) -> None:
    def reverse(forward_first: bool) -> Any:
        state = predictor.init_state(clip)
        predictor.add_new_points_or_box(state, 10, 1, [[30, 20]], [1])
        if forward_first:
            list(predictor.propagate_in_video(state))
        return masks_of(predictor.propagate_in_video(state, reverse=True))

    after, alone = reverse(True), reverse(False)
    assert list(after) == list(range(10, -1, -1))
    assert torch.equal(after[10], alone[10]) and not torch.equal(after[9], alone[9])
