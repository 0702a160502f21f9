"""Many objects: prompts without output, masks one by one, passes in both directions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from sam2_fast import SAM2VideoPredictor
from sam2_fast.video import full_size, tracker
from sam2_fast.video.session import VideoSession

COUNT = 5
MakePredictor = Callable[..., SAM2VideoPredictor]


def prompt_all(predictor: SAM2VideoPredictor, state: Any, **options: Any) -> list[torch.Tensor]:
    outputs = []
    for number in range(COUNT):
        box = [4 + 8 * number, 6, 24 + 8 * number, 40]
        outputs.append(
            predictor.add_new_points_or_box(state, 0, f"object {number}", box=box, **options)[2]
        )
    return outputs


@pytest.mark.field("B18")
def test_prompts_without_output_make_no_masks_of_full_size(
    predictor: SAM2VideoPredictor, clip: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    upsample = tracker.upsample
    monkeypatch.setattr(
        tracker, "upsample", lambda x, size: sizes.append(len(x)) or upsample(x, size)
    )
    state = predictor.init_state(clip)
    outputs = prompt_all(predictor, state, need_output=False)
    mask = np.zeros(clip.shape[1:3], bool)
    outputs.append(predictor.add_new_mask(state, 0, "drawn", mask, need_output=False)[2])
    outputs += [m for _, _, m in predictor.propagate_in_video(state, need_output=False)]
    assert sizes == []
    assert {tuple(output.shape) for output in outputs} == {(0, 1, *clip.shape[1:3])}


@pytest.mark.field("B18")
@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("objects_at_once", [1, 2, COUNT])
def test_masks_one_by_one_are_those_of_the_full_output(
    make_predictor: MakePredictor,
    clip: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    exclusive: bool,
    objects_at_once: int,
) -> None:
    height, width = clip.shape[1:3]
    monkeypatch.setattr(full_size, "CHUNK_BYTES", 4 * height * width * objects_at_once)
    predictor = make_predictor(non_overlap_masks=exclusive)
    full, lean = predictor.init_state(clip), predictor.init_state(clip)
    prompt_all(predictor, full)
    prompt_all(predictor, lean, need_output=False)
    expected = predictor.propagate_in_video(full)
    for frame, ids, _ in predictor.propagate_in_video(lean, need_output=False):
        logits = next(expected)[2]
        masks = dict(predictor.frame_masks(lean, frame))
        assert list(masks) == ids
        assert torch.equal(torch.stack([*masks.values()]), logits[:, 0] > 0)
        chosen = dict(predictor.frame_masks(lean, frame, ids[3:1:-1]))
        assert list(chosen) == ids[3:1:-1]
        assert all(torch.equal(mask, masks[i]) for i, mask in chosen.items())
    assert next(expected, None) is None


def test_ties_belong_to_the_first_object_as_in_the_full_output() -> None:
    logits = torch.zeros(3, 1, 4, 4) + torch.tensor([1.0, 2.0, 2.0]).view(3, 1, 1, 1)
    masks = list(full_size.binary_masks(logits, (9, 9), True, range(3)))
    assert [bool(mask.any()) for mask in masks] == [False, True, False]
    assert masks[1].all()


def test_masks_of_an_unknown_object_or_frame_are_refused(
    predictor: SAM2VideoPredictor, clip: np.ndarray
) -> None:
    state = predictor.init_state(clip)
    prompt_all(predictor, state)
    with pytest.raises(ValueError, match="'nothing' is unknown; existing ids"):
        predictor.frame_masks(state, 0, ["nothing"])
    with pytest.raises(IndexError, match="frame_idx"):
        predictor.frame_masks(state, len(clip))
    assert not any(mask.any() for _, mask in predictor.frame_masks(state, len(clip) - 1))


def test_a_pass_in_both_directions_needs_only_the_reachable_memories(
    make_predictor: MakePredictor, make_clip: Callable[..., np.ndarray]
) -> None:
    predictor, clip = make_predictor(), make_clip(40)
    results = []
    for keep in ("all", "reachable"):
        state = predictor.init_state(clip, keep=keep)
        predictor.add_new_points_or_box(state, 8, 1, box=[10, 10, 30, 30])
        predictor.add_new_points_or_box(state, 30, 2, box=[30, 10, 60, 30])
        outputs = predictor.propagate_in_both_directions(state)
        results.append({frame: masks for frame, _, masks in outputs})
        assert state.control.return_starts == set()
    everything, reachable = results
    assert list(everything) == [*range(8, 40), *range(7, -1, -1)] == list(reachable)
    assert all(torch.equal(everything[f], reachable[f]) for f in everything)


def test_a_pass_in_both_directions_is_limited_in_each(
    predictor: SAM2VideoPredictor, clip: np.ndarray
) -> None:
    state: VideoSession = predictor.init_state(clip)
    predictor.add_new_points_or_box(state, 3, 1, box=[10, 10, 30, 30])
    outputs = predictor.propagate_in_both_directions(state, max_frame_num_to_track=1)
    assert [frame for frame, _, _ in outputs] == [3, 4, 2]


def test_a_stream_needs_no_output_either(predictor: SAM2VideoPredictor, clip: np.ndarray) -> None:
    full, lean = predictor.init_state(None), predictor.init_state(None)
    for number, picture in enumerate(clip[:4]):
        masks = predictor.step(full, picture)[2]
        assert predictor.step(lean, picture, need_output=False)[2].shape[0] == 0
        if number == 0:
            for state in (full, lean):
                prompt_all(predictor, state)
            continue
        one_by_one = [mask for _, mask in predictor.frame_masks(lean, number)]
        assert torch.equal(torch.stack(one_by_one), masks[:, 0] > 0)


def test_masks_one_by_one_are_those_of_an_overridden_step(
    make_predictor: MakePredictor, clip: np.ndarray
) -> None:
    predictor = make_predictor()
    convert = predictor._get_orig_video_res_output

    def inverted(*arguments: Any) -> Any:
        low, masks = convert(*arguments)
        return low, -masks

    predictor._get_orig_video_res_output = inverted  # type: ignore[method-assign]
    state = predictor.init_state(clip)
    masks = prompt_all(predictor, state)[-1]
    one_by_one = [mask for _, mask in predictor.frame_masks(state, 0)]
    assert torch.equal(torch.stack(one_by_one), masks[:, 0] > 0)
    usual = make_predictor()
    state = usual.init_state(clip)
    prompt_all(usual, state)
    assert all(
        not torch.equal(mask, other)
        for mask, (_, other) in zip(one_by_one, usual.frame_masks(state, 0), strict=True)
    )
