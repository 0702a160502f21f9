"""Features beyond the official predictor: streams, bounded memory, threads, batched objects."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sam2_fast.ops.core import registry
from sam2_fast.video import frame_steps
from sam2_fast.video.camera import SAM2CameraPredictor

CLICK = {"points": [[20, 20]], "labels": [1]}


def stream(
    predictor: Any, clip: Any, clicks: dict[int, list[tuple[Any, dict[str, Any]]]]
) -> dict[int, torch.Tensor]:
    """Masks of a clip by frame, tracked frame by frame. `clicks`: prompts by frame."""
    state = predictor.init_state(None)
    masks_by_frame = {}
    for picture in clip:
        frame, _, masks = predictor.step(state, picture)
        for obj_id, click in clicks.get(frame, []):
            masks = predictor.add_new_points_or_box(state, frame, obj_id, **click)[2]
        masks_by_frame[frame] = masks.clone()
    return masks_by_frame


def test_streaming_is_bitwise_equal_to_offline_tracking(
    predictor: Any, clip: Any, masks_of: Any
) -> None:
    streamed = stream(predictor, clip, {0: [(1, CLICK), (2, {"box": [30, 5, 60, 40]})]})
    state = predictor.init_state(clip)
    predictor.add_new_points_or_box(state, 0, 1, **CLICK)
    predictor.add_new_points_or_box(state, 0, 2, box=[30, 5, 60, 40])
    offline = masks_of(predictor.propagate_in_video(state))
    assert all(torch.equal(streamed[f], offline[f]) for f in range(20))


@pytest.mark.parametrize("keep", ["all", "reachable"])
def test_bounded_memory_gives_the_same_masks(
    predictor: Any, make_clip: Any, masks_of: Any, keep: str
) -> None:
    clip = make_clip(45)
    results = []
    for option in ("all", keep):
        state = predictor.init_state(clip, keep=option)
        predictor.add_new_points_or_box(state, 20, 1, **CLICK)
        forward = masks_of(predictor.propagate_in_video(state))
        backward = masks_of(predictor.propagate_in_video(state, reverse=True))
        results.append([*forward.values(), *backward.values()])
        if option == "reachable":
            assert len(state.objects[1].bank.tracked) <= 3 * 16
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_stream_keeps_a_bounded_number_of_memories_and_frames(
    predictor: Any, make_clip: Any
) -> None:
    state = predictor.init_state(None)
    for frame, picture in enumerate(make_clip(60)):
        predictor.step(state, picture)
        if frame == 0:
            predictor.add_new_points_or_box(state, 0, 1, **CLICK)
    bank = state.objects[1].bank
    assert len(bank.tracked) == 16 and sum(m.map is not None for m in bank.tracked.values()) == 7
    assert len(state.objects[1].passed) <= 17 and len(state.frames._frames) <= 8


def test_objects_can_be_added_and_removed_in_a_stream(predictor: Any, clip: Any) -> None:
    state = predictor.init_state(None)
    assert predictor.step(state, clip[0])[2].shape == (0, 1, 48, 72)
    predictor.add_new_points_or_box(state, 0, 1, **CLICK)
    predictor.step(state, clip[1])
    predictor.add_new_mask(state, 1, "two", np.ones((48, 72)))
    assert predictor.step(state, clip[2])[1] == [1, "two"]
    predictor.remove_object(state, 1)
    frame, ids, masks = predictor.step(state, clip[3])
    assert (frame, ids, masks.shape) == (3, ["two"], (1, 1, 48, 72))


def test_a_frame_of_another_size_is_refused_and_the_stream_continues(
    predictor: Any, clip: Any
) -> None:
    state = predictor.init_state(None)
    predictor.step(state, clip[0])
    predictor.add_new_points_or_box(state, 0, 1, **CLICK)
    with pytest.raises(ValueError, match="72 x 48"):
        predictor.step(state, clip[1][:20])
    assert predictor.step(state, clip[1])[0] == 1


def test_a_stream_recovers_from_a_failed_frame(predictor: Any, clip: Any, monkeypatch: Any) -> None:
    expected = stream(predictor, clip[:6], {0: [(1, CLICK)]})
    state = predictor.init_state(None)
    predictor.step(state, clip[0])
    predictor.add_new_points_or_box(state, 0, 1, **CLICK)
    for picture in clip[1:3]:
        predictor.step(state, picture)

    def run_out_of_memory(*_: Any) -> None:
        raise torch.OutOfMemoryError("injected")

    with monkeypatch.context() as patch:
        patch.setattr(predictor, "encode_memory", run_out_of_memory)
        with pytest.raises(torch.OutOfMemoryError):
            predictor.step(state, clip[3])
    for picture in clip[3:6]:
        frame, _, masks = predictor.step(state, picture)
        assert torch.equal(masks, expected[frame])


def test_old_frames_of_a_stream_cannot_be_prompted(predictor: Any, clip: Any) -> None:
    state = predictor.init_state(None)
    for picture in clip:
        predictor.step(state, picture)
    with pytest.raises(IndexError, match="not stored any more"):
        predictor.add_new_points_or_box(state, 2, 1, **CLICK)
    assert not state.objects


def test_the_method_names_of_the_camera_predictor(predictor: Any, clip: Any) -> None:
    camera = SAM2CameraPredictor(predictor)
    with pytest.raises(RuntimeError, match="load_first_frame"):
        camera.track(clip[0])
    camera.load_first_frame(clip[0])
    camera.add_new_prompt(0, 1, points=[[20, 20]], labels=[1])
    ids, masks = camera.track(clip[1])
    expected = stream(predictor, clip[:2], {0: [(1, CLICK)]})
    assert ids == [1] and torch.equal(masks, expected[1])


def test_step_requires_a_stream(predictor: Any, clip: Any) -> None:
    with pytest.raises(TypeError, match=r"init_state\(None\)"):
        predictor.step(predictor.init_state(clip), clip[0])


def test_both_directions_visit_every_frame_once(predictor: Any, clip: Any) -> None:
    state = predictor.init_state(clip)
    predictor.add_new_points_or_box(state, 7, 1, **CLICK)
    frames = [f for f, _, _ in predictor.propagate_in_both_directions(state)]
    assert frames == [*range(7, 20), *range(6, -1, -1)]


@pytest.mark.parametrize(
    ("start", "limit", "reverse", "frames"),
    [
        (3, 2, False, [3, 4, 5]),
        (18, 5, False, [18, 19]),
        (3, 2, True, [3, 2, 1]),
        (0, None, True, []),
        (2, 0, False, [2]),
    ],
)
def test_propagation_has_the_official_frame_order(
    predictor: Any, clip: Any, start: int, limit: int, reverse: bool, frames: list[int]
) -> None:
    state = predictor.init_state(clip)
    predictor.add_new_points_or_box(state, 0, 1, **CLICK)
    outputs = list(predictor.propagate_in_video(state, start, limit, reverse))
    assert [f for f, _, _ in outputs] == frames


def test_objects_with_different_histories_in_one_pass_equal_each_object_alone(
    predictor: Any, clip: Any
) -> None:
    prompts = {
        1: (0, CLICK),
        2: (4, {"box": [30, 5, 60, 40]}),
        3: (9, CLICK),
        4: (0, {"points": [[50, 30]], "labels": [1]}),
    }

    def run(ids: list[int]) -> dict[tuple[int, int], torch.Tensor]:
        state = predictor.init_state(clip)
        for i in ids:
            predictor.add_new_points_or_box(state, prompts[i][0], i, **prompts[i][1])
        return {
            (f, i): masks[k]
            for f, object_ids, masks in predictor.propagate_in_video(state, 0)
            for k, i in enumerate(object_ids)
        }

    all_objects = run([1, 2, 3, 4])
    for i in prompts:
        for key, mask in run([i]).items():
            assert torch.allclose(mask, all_objects[key], atol=2e-5), key


def test_more_objects_than_fit_in_one_pass(
    predictor: Any, clip: Any, monkeypatch: Any, masks_of: Any
) -> None:
    results = []
    for size in (16, 2):
        monkeypatch.setattr(frame_steps, "OBJECTS_PER_PASS", size)
        state = predictor.init_state(clip)
        for i in range(5):
            predictor.add_new_points_or_box(state, 0, i, [[10 + 9 * i, 20]], [1])
        results.append(masks_of(predictor.propagate_in_video(state, max_frame_num_to_track=3)))
    assert all(torch.allclose(results[0][f], results[1][f], atol=2e-5) for f in range(4))


def test_sessions_in_several_threads_equal_serial_ones(
    predictor: Any, make_clip: Any, masks_of: Any
) -> None:
    clips = [make_clip(8, seed=s) for s in range(4)]

    def run(clip: Any) -> dict[int, torch.Tensor]:
        state = predictor.init_state(clip)
        predictor.add_new_points_or_box(state, 0, 1, **CLICK)
        return masks_of(predictor.propagate_in_video(state))

    serial = [run(c) for c in clips]
    parallel: list[Any] = [None] * 4
    threads = [
        threading.Thread(target=lambda i=i: parallel.__setitem__(i, run(clips[i])))
        for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a[f], b[f]) for a, b in zip(serial, parallel, strict=True) for f in a)


def test_one_session_in_two_threads_raises(predictor: Any, clip: Any, monkeypatch: Any) -> None:
    state = predictor.init_state(clip)
    encoding = threading.Event()
    may_continue = threading.Event()
    original = predictor.encode_image

    def encode_image(images: torch.Tensor) -> Any:
        encoding.set()
        may_continue.wait(10)
        return original(images)

    monkeypatch.setattr(predictor, "encode_image", encode_image)
    worker = threading.Thread(target=lambda: predictor.add_new_points_or_box(state, 3, 1, **CLICK))
    worker.start()
    encoding.wait(10)
    with pytest.raises(RuntimeError, match="in use by another call"):
        predictor.add_new_points_or_box(state, 3, 2, **CLICK)
    may_continue.set()
    worker.join()
    assert state.obj_ids == [1]


def test_offloading_gives_the_same_masks_and_leaves_settings_of_torch_unchanged(
    predictor: Any, clip: Any, masks_of: Any
) -> None:
    def settings() -> tuple[Any, ...]:
        return torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads()

    before = settings()
    rng = torch.get_rng_state()
    on_device = predictor.init_state(clip)
    offloaded = predictor.init_state(
        clip, offload_state_to_cpu=True, offload_video_to_cpu=True, async_loading_frames=True
    )
    for state in (on_device, offloaded):
        predictor.add_new_points_or_box(state, 0, 1, **CLICK)
    expected = masks_of(predictor.propagate_in_video(on_device))
    masks = masks_of(predictor.propagate_in_video(offloaded))
    assert all(torch.equal(expected[f], masks[f]) for f in expected)
    assert settings() == before
    assert torch.equal(rng, torch.get_rng_state()) and not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_weights_of_other_dtypes_err_at_most_twice_as_much_as_the_torch_backend(
    make_predictor: Any,
    clip: Any,
    dtype: torch.dtype,
    masks_of: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def track(predictor: Any) -> Tensor:
        state = predictor.init_state(clip)
        predictor.add_new_points_or_box(state, 0, 1, **CLICK)
        predictor.add_new_mask(state, 0, 2, np.ones((48, 72)))
        masks = masks_of(predictor.propagate_in_video(state, max_frame_num_to_track=4))
        assert state.objects[1].bank.tracked[1].map.dtype == predictor.dtype
        assert all(m.dtype == torch.float32 for m in masks.values())
        return torch.stack(list(masks.values())).double()

    exact = track(make_predictor().double())
    ours = track(make_predictor().to(dtype))
    monkeypatch.setattr(registry, "ORDER", ("torch",))
    in_torch = track(make_predictor().to(dtype))
    assert (ours - exact).square().mean().sqrt() <= 2 * (in_torch - exact).square().mean().sqrt()


def test_autocast_of_the_caller_is_applied(predictor: Any, clip: Any, masks_of: Any) -> None:
    state = predictor.init_state(clip)
    with torch.autocast("cpu", torch.bfloat16):
        predictor.add_new_points_or_box(state, 3, 1, **CLICK)
        masks = masks_of(predictor.propagate_in_video(state, start_frame_idx=0))
    assert state.objects[1].bank.tracked[1].map.dtype == torch.bfloat16
    assert masks[0].dtype == torch.float32


def test_corrections_of_a_stream_do_not_accumulate_and_change_no_later_mask(
    predictor: Any, make_clip: Any
) -> None:
    clip = make_clip(50)
    state, everything = predictor.init_state(None), predictor.init_state(None, keep="all")
    counts = []
    for number, frame in enumerate((*clip, *clip)):
        outputs = [predictor.step(s, frame)[2] for s in (state, everything)]
        assert torch.equal(*outputs)
        if number % 5 == 0:
            for s in (state, everything):
                predictor.add_new_points_or_box(s, number, 1, **CLICK, clear_old_points=False)
        track = state.object(1)
        counts.append(len(track.bank.tracked) + len(track.points) + len(track.passed))
    assert max(counts[30:50]) == max(counts[80:])
    repeated = [f for f, _, _ in predictor.propagate_in_video(state, 95)]
    assert repeated == [95, 96, 97, 98, 99]


@pytest.mark.slow
def test_memory_does_not_grow_in_ten_thousand_frames(predictor: Any, make_clip: Any) -> None:
    psutil = pytest.importorskip("psutil")
    process = psutil.Process()
    clip = make_clip(50)
    state = predictor.init_state(None)
    sizes = []
    for frame in range(10_000):
        predictor.step(state, clip[frame % 50])
        if frame % 10 == 5:
            points = [[10 + frame % 40, 20]]
            for obj_id in state.obj_ids:
                predictor.add_new_points_or_box(state, frame, obj_id, points, [frame // 10 % 2])
        if frame % 100 == 0:
            if len(state.objects) == 4:
                predictor.remove_object(state, state.obj_ids[0])
            for i in range(4 - len(state.objects)):
                predictor.add_new_points_or_box(
                    state, frame, frame * 4 + i, [[10 + 12 * i, 20]], [1]
                )
        if frame >= 2000 and frame % 500 == 0:
            sizes.append(process.memory_info().rss)
    slope = np.polyfit(np.arange(len(sizes)) * 500, sizes, 1)[0]
    print(
        f"{slope:.1f} bytes a frame over frames 2000 to 10000; resident memory "
        f"{sizes[0] / 1e6:.1f} to {sizes[-1] / 1e6:.1f} MB"
    )
    assert slope < 500, f"{slope:.0f} bytes a frame"  # a memory map of this model has 4096 bytes
