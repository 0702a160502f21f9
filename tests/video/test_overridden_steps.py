"""Official steps that a model overrides are called, as by the official predictor."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from sam2_fast.image.predictor import SAM2ImagePredictor
from sam2_fast.official.base import SAM2Base
from sam2_fast.official.overrides import needs_official_steps
from sam2_fast.video.predictor import SAM2VideoPredictor, SAM2VideoPredictorVOS
from tests.video.conftest import moving_frames, small_predictor

Masks = dict[Any, torch.Tensor]
STEPS = (
    "forward_image",
    "_prepare_backbone_features",
    "track_step",
    "_track_step",
    "_forward_sam_heads",
    "_use_mask_as_output",
    "_prepare_memory_conditioned_features",
    "_encode_new_memory",
    "_encode_memory_in_output",
    "_use_multimask",
)


def use(predictor: SAM2VideoPredictor, clip: Any) -> Masks:
    """Masks of an interactive session: several objects, corrections, masks, both directions."""
    masks: Masks = {}

    def store(name: str, outputs: Iterator[Any]) -> None:
        masks.update({(name, frame): logits.clone() for frame, _, logits in outputs})

    state = predictor.init_state(clip)
    predictor.add_new_points_or_box(state, 2, "a", [[20, 20]], [1])
    predictor.add_new_points_or_box(state, 2, "a", [[24, 22]], [0], clear_old_points=False)
    predictor.add_new_points_or_box(state, 2, 7, box=[8, 8, 30, 30])
    store("forward", predictor.propagate_in_video(state, max_frame_num_to_track=4))
    correction = predictor.add_new_points_or_box(state, 4, "a", [[22, 16]], [1])
    masks["correction"] = correction[2].clone()
    drawn = np.zeros((48, 72), bool)
    drawn[12:26, 30:50] = True
    masks["mask"] = predictor.add_new_mask(state, 3, "late", drawn)[2].clone()
    store("again", predictor.propagate_in_video(state, 3, 4))
    store("reverse", predictor.propagate_in_video(state, 4, reverse=True))
    predictor.clear_all_prompts_in_frame(state, 2, 7)
    predictor.remove_object(state, "a")
    store("rest", predictor.propagate_in_video(state, 3, 2))
    return masks


def assert_close(masks: Masks, expected: Masks) -> None:
    assert masks.keys() == expected.keys()
    for key, mask in masks.items():
        torch.testing.assert_close(mask, expected[key], rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    return moving_frames(8)


@pytest.fixture(scope="module")
def expected(clip: np.ndarray) -> Masks:
    return use(small_predictor(), clip)


def subclass(predictor: SAM2VideoPredictor, name: str, calls: list[str]) -> None:
    original = getattr(SAM2VideoPredictor, name)

    def step(self: Any, *arguments: Any, **keywords: Any) -> Any:
        calls.append(name)
        return original(self, *arguments, **keywords)

    predictor.__class__ = type("Changed", (SAM2VideoPredictor,), {name: step})


def assign(predictor: SAM2VideoPredictor, name: str, calls: list[str]) -> None:
    original = getattr(predictor, name)

    def step(self: Any, *arguments: Any, **keywords: Any) -> Any:
        calls.append(name)
        return original(*arguments, **keywords)

    setattr(predictor, name, types.MethodType(step, predictor))


@pytest.mark.parametrize("change", [subclass, assign])
@pytest.mark.parametrize("name", STEPS)
def test_an_overridden_step_is_called_and_changes_nothing_by_itself(
    name: str, change: Callable[..., None], clip: np.ndarray, expected: Masks
) -> None:
    predictor = small_predictor()
    calls: list[str] = []
    change(predictor, name, calls)
    assert needs_official_steps(predictor)
    assert_close(use(predictor, clip), expected)
    assert calls


def test_a_step_that_is_patched_in_its_class_is_called(
    clip: np.ndarray, expected: Masks, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = small_predictor()
    original, calls = SAM2Base._use_multimask, []
    monkeypatch.setattr(
        SAM2Base, "_use_multimask", lambda *a, **k: calls.append(a) or original(*a, **k)
    )
    assert_close(use(predictor, clip), expected)
    assert calls


def test_models_without_overrides_do_not_need_official_steps() -> None:
    predictor = small_predictor()
    assert not needs_official_steps(predictor)
    predictor.__class__ = SAM2VideoPredictorVOS
    assert not needs_official_steps(predictor)
    predictor.note = "attributes of other names do not matter"  # type: ignore[assignment]
    assert not needs_official_steps(predictor)


class Stricter(SAM2VideoPredictor):
    """Sees one mask only, and remembers no frame but the prompted ones."""

    def _use_multimask(self, is_init_cond_frame: bool, point_inputs: Any) -> bool:
        return False

    def _prepare_memory_conditioned_features(self, **arguments: Any) -> Any:
        output_dict = arguments.pop("output_dict")
        kept = {"cond_frame_outputs": output_dict["cond_frame_outputs"]}
        kept["non_cond_frame_outputs"] = {}
        return super()._prepare_memory_conditioned_features(output_dict=kept, **arguments)


def test_the_results_of_overridden_steps_are_used(clip: np.ndarray, expected: Masks) -> None:
    predictor = small_predictor()
    predictor.__class__ = Stricter
    masks = use(predictor, clip)
    assert any((masks[key] - expected[key]).abs().max() > 1e-2 for key in masks)
    predictor.__class__ = SAM2VideoPredictor
    assert_close(use(predictor, clip), expected)


def test_steps_may_be_overridden_in_the_middle_of_a_propagation(clip: np.ndarray) -> None:
    predictor = small_predictor()
    state = predictor.init_state(clip)
    predictor.add_new_points_or_box(state, 0, 1, [[20, 20]], [1])
    original, calls, frames = predictor.track_step, [], []

    def step(**arguments: Any) -> Any:
        calls.append(arguments["frame_idx"])
        return original(**arguments)

    for frame, _, _ in predictor.propagate_in_video(state):
        frames.append(frame)
        if frame == 2:
            predictor.track_step = step  # type: ignore[method-assign]
        if frame == 5:
            del predictor.track_step
    assert frames == list(range(8)) and calls == [3, 4, 5]


def raising_at_second_call(step: Callable[..., Any], error: Exception) -> Any:
    """A step that raises `error` once, at its second call."""
    calls: list[Any] = []

    def run(**arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise error
        return step(**arguments)

    return run


def test_a_step_that_raises_changes_nothing(
    clip: np.ndarray, snapshot: Callable[[Any], Any]
) -> None:
    predictor = small_predictor()
    state = predictor.init_state(clip)
    for name in ("a", "b"):
        predictor.add_new_points_or_box(state, 0, name, [[20, 20]], [1])
    list(predictor.propagate_in_video(state, max_frame_num_to_track=2))
    before = snapshot(state)
    error = ArithmeticError("the policy failed")
    predictor.track_step = raising_at_second_call(predictor.track_step, error)
    with pytest.raises(ArithmeticError, match="the policy failed"):
        list(predictor.propagate_in_video(state, 3, 0))
    assert snapshot(state) == before
    assert len(list(predictor.propagate_in_video(state, 3, 0))) == 1


def test_a_stream_is_tracked_by_overridden_steps(clip: np.ndarray) -> None:
    results = []
    for overridden in (False, True):
        predictor = small_predictor()
        if overridden:
            assign(predictor, "track_step", [])
        state = predictor.init_state(None)
        predictor.step(state, clip[0])
        predictor.add_new_points_or_box(state, 0, 1, [[20, 20]], [1])
        results.append({i: predictor.step(state, frame)[2] for i, frame in enumerate(clip[1:])})
    assert_close(results[1], results[0])


def test_without_memory_maps_a_frame_attends_to_nothing(clip: np.ndarray, expected: Masks) -> None:
    predictor = small_predictor()
    predictor.num_maskmem = 0
    masks = use(predictor, clip)
    assert (masks["forward", 5] - expected["forward", 5]).abs().max() > 1e-2
    for value in (-1, 8):
        with pytest.raises(ValueError, match="num_maskmem: expected 0 to 7"):
            predictor.num_maskmem = value


def test_fewer_memory_maps_and_no_pointers_change_the_masks(
    clip: np.ndarray, expected: Masks
) -> None:
    for name, value in (("num_maskmem", 2), ("use_obj_ptrs_in_encoder", False)):
        predictor = small_predictor()
        setattr(predictor, name, value)
        masks = use(predictor, clip)
        assert (masks["forward", 5] - expected["forward", 5]).abs().max() > 1e-4
        assign(predictor, "_use_multimask", [])
        assert_close(use(predictor, clip), masks)


def test_settings_that_no_released_model_has_are_refused() -> None:
    predictor = small_predictor()
    predictor.pred_obj_scores = True
    with pytest.raises(ValueError, match="pred_obj_scores: expected True, as in the released"):
        predictor.pred_obj_scores = False
    with pytest.raises(ValueError, match="proj_tpos_enc_in_obj_ptrs: expected True"):
        predictor.proj_tpos_enc_in_obj_ptrs = False


@pytest.mark.parametrize("name", ["forward_image", "_prepare_backbone_features"])
def test_an_image_predictor_calls_overridden_steps(name: str, clip: np.ndarray) -> None:
    predictor = small_predictor()
    image_predictor = SAM2ImagePredictor(predictor)
    image_predictor.set_image(clip[0])
    expected = image_predictor.predict([[20, 20]], [1], return_logits=True)
    calls: list[str] = []
    assign(predictor, name, calls)
    image_predictor.set_image(clip[0])
    assert calls == [name]
    outputs = image_predictor.predict([[20, 20]], [1], return_logits=True)
    for a, b in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


def test_a_commit_that_fails_keeps_no_positions_of_memory_maps(clip: np.ndarray) -> None:
    predictor = small_predictor()
    error = OSError("the second object")
    state = predictor.init_state(clip)
    for obj_id in (1, 2):
        predictor.add_new_points_or_box(state, 0, obj_id, [[20, 20]], [1])
    predictor._encode_new_memory = raising_at_second_call(predictor._encode_new_memory, error)
    with pytest.raises(OSError, match="the second object"):
        predictor.propagate_in_video_preflight(state)
    assert not state["constants"]
    predictor.propagate_in_video_preflight(state)
    assert state["constants"]


def positions_of_features(predictor: SAM2VideoPredictor) -> Any:
    return predictor.image_encoder.neck.position_encoding


def positions_of_memories(predictor: SAM2VideoPredictor) -> Any:
    return predictor.memory_encoder.position_encoding


@pytest.mark.parametrize("encoding", [positions_of_features, positions_of_memories])
def test_changed_positions_reach_memory_attention(
    encoding: Callable[[SAM2VideoPredictor], Any], clip: np.ndarray, expected: Masks
) -> None:
    predictor = small_predictor()
    assert encoding(predictor).is_that_of_released_models()
    handle = encoding(predictor).register_forward_hook(lambda _, __, output: 3 * output)
    assert needs_official_steps(predictor)
    masks = use(predictor, clip)
    assert (masks["forward", 5] - expected["forward", 5]).abs().max() > 1e-3
    assert torch.allclose(masks["forward", 2], expected["forward", 2], atol=1e-3)
    handle.remove()
    encoding(predictor).scale = 1.0
    assert needs_official_steps(predictor)
