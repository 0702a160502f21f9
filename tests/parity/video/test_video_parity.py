"""Our video predictor against the official one with equal weights, on real frames.

Errors of logits are at most twice the official ones, the IoU of masks is at least 0.999.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sam2_fast.build_sam import build_sam2_video_predictor

FRAMES = 9


def folder_of(frames: int, data: Path, folder: Path) -> str:
    for path in sorted((data / "bedroom").glob("*.jpg"))[:frames]:
        (folder / path.name).symlink_to(path)
    return str(folder)


@pytest.fixture(scope="module")
def clip_folder(data: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return folder_of(FRAMES, data, tmp_path_factory.mktemp("bedroom"))


def rectangle(left: int = 200) -> np.ndarray:
    mask = np.zeros((540, 960), bool)
    mask[100:300, left : left + 200] = True
    return mask


def one_click(p: Any, s: Any) -> Any:
    yield p.add_new_points_or_box(s, 0, 1, points=[[210, 350]], labels=[1])
    yield from p.propagate_in_video(s)


def several_objects(p: Any, s: Any) -> Any:
    yield p.add_new_points_or_box(s, 0, 1, points=[[210, 350], [250, 220]], labels=[1, 0])
    yield p.add_new_points_or_box(s, 0, 2, box=[300, 100, 500, 400])
    yield p.add_new_points_or_box(s, 0, 3, points=[[400, 150]], labels=[1], box=[420, 40, 600, 340])
    yield p.add_new_mask(s, 0, 4, rectangle())
    yield from p.propagate_in_video(s)


def refined_before_tracking(p: Any, s: Any) -> Any:
    yield p.add_new_points_or_box(s, 0, 1, points=[[210, 350]], labels=[1])
    yield p.add_new_points_or_box(s, 0, 1, points=[[250, 220]], labels=[1], clear_old_points=False)
    yield p.add_new_points_or_box(s, 0, 1, points=[[300, 220]], labels=[0], clear_old_points=False)
    yield from p.propagate_in_video(s)


def later_objects(p: Any, s: Any) -> Any:
    yield p.add_new_points_or_box(s, 0, 1, points=[[210, 350]], labels=[1])
    yield p.add_new_mask(s, FRAMES // 2, 7, rectangle(400))
    yield from p.propagate_in_video(s)


def object_after_tracking(p: Any, s: Any) -> Any:
    yield p.add_new_points_or_box(s, 0, 1, points=[[210, 350]], labels=[1])
    yield from p.propagate_in_video(s)
    yield p.add_new_points_or_box(s, 3, 2, box=[300, 100, 500, 400])
    yield from p.propagate_in_video(s)


def correction_preview(p: Any, s: Any) -> Any:
    """Masks returned for a correction; the official code discards the click when it propagates."""
    yield p.add_new_points_or_box(s, 0, 1, points=[[210, 350]], labels=[1])
    yield from p.propagate_in_video(s)
    yield p.add_new_points_or_box(s, 4, 1, points=[[230, 340]], labels=[0])
    yield p.add_new_points_or_box(s, 4, 1, points=[[260, 340]], labels=[1], clear_old_points=False)
    yield p.add_new_points_or_box(s, 0, 1, points=[[215, 340]], labels=[1])


def several_prompted_frames(p: Any, s: Any) -> Any:
    for frame in (0, 3, 6):
        yield p.add_new_points_or_box(s, frame, 1, points=[[210 + 10 * frame, 350]], labels=[1])
    yield from p.propagate_in_video(s)


def reverse(p: Any, s: Any) -> Any:
    yield p.add_new_points_or_box(s, FRAMES - 1, 1, points=[[210, 350]], labels=[1])
    yield from p.propagate_in_video(s, reverse=True)


def both_directions(p: Any, s: Any) -> Any:
    yield p.add_new_points_or_box(s, 4, 1, points=[[210, 350]], labels=[1])
    yield from p.propagate_in_video(s)
    yield from p.propagate_in_video(s, reverse=True)


def cleared_and_removed(p: Any, s: Any) -> Any:
    yield p.add_new_points_or_box(s, 0, 1, points=[[210, 350]], labels=[1])
    yield p.add_new_points_or_box(s, 0, 2, box=[300, 100, 500, 400])
    yield p.add_new_points_or_box(s, 2, 1, points=[[220, 350]], labels=[1])
    yield from p.propagate_in_video(s, max_frame_num_to_track=4)
    yield p.clear_all_prompts_in_frame(s, 2, 1)
    p.remove_object(s, 2)
    yield from p.propagate_in_video(s)


SCENARIOS = [
    one_click,
    several_objects,
    refined_before_tracking,
    later_objects,
    object_after_tracking,
    correction_preview,
    several_prompted_frames,
    reverse,
    both_directions,
    cleared_and_removed,
]


def replay(
    predictor: Any, scenario: Callable[..., Any], clip: str
) -> list[tuple[int, list[int], torch.Tensor]]:
    with torch.inference_mode():
        return [
            (f, list(ids), masks.clone())
            for f, ids, masks in scenario(predictor, predictor.init_state(clip))
        ]


def build_ours_and_exact(official: Any) -> tuple[Any, Any]:
    """Our predictor with the weights of the official one, in float32 and in float64."""
    state = official.state_dict()
    size = official.image_size
    ours = build_sam2_video_predictor(None, state, device="cpu", image_size=size)
    exact = build_sam2_video_predictor(
        None, state, device="cpu", image_size=size, dtype=torch.float64
    )
    return ours, exact


def compare(official: Any, scenario: Callable[..., Any], clip: str, mask_iou: Any) -> None:
    """Assert equal frames and ids, an error of at most twice the official one, IoU over 0.999."""
    ours, exact = build_ours_and_exact(official)
    runs = zip(*(replay(p, scenario, clip) for p in (official, ours, exact)), strict=True)
    our_error = 0.0
    official_error = 0.0
    for (frame, ids, a), (our_frame, our_ids, b), (_, _, truth) in runs:
        assert (frame, ids) == (our_frame, our_ids)
        assert a.shape == b.shape
        assert b.dtype == torch.float32
        our_error = max(our_error, (b - truth).abs().max().item())
        official_error = max(official_error, (a - truth).abs().max().item())
        ious = [mask_iou(x, y) for x, y in zip(a, b, strict=True)]
        assert min(ious) >= 0.999, (frame, ious)
    assert our_error <= 2 * official_error


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.__name__)
def test_masks_equal_the_official_ones(
    official_video: Any, clip_folder: str, mask_iou: Any, scenario: Callable[..., Any]
) -> None:
    compare(official_video("t", "sam2.1", 128), scenario, clip_folder, mask_iou)


def test_masks_of_thirty_frames_equal_the_official_ones(
    official_video: Any, data: Path, tmp_path: Path, mask_iou: Any
) -> None:
    """A clip twice as long as the memory."""
    clip = folder_of(30, data, tmp_path)
    compare(official_video("t", "sam2.1", 128), later_objects, clip, mask_iou)


@pytest.mark.parametrize("image_size", [96, 256])
def test_masks_at_other_image_sizes_equal_the_official_ones(
    official_video: Any, clip_folder: str, mask_iou: Any, image_size: int
) -> None:
    compare(official_video("t", "sam2.1", image_size), several_objects, clip_folder, mask_iou)


def test_masks_of_version_2_0_equal_the_official_ones(
    official_video: Any, clip_folder: str, mask_iou: Any
) -> None:
    compare(official_video("t", "sam2", 128), later_objects, clip_folder, mask_iou)


def test_bfloat16_autocast_errs_at_most_twice_as_much_as_the_official_code(
    official_video: Any, clip_folder: str, mask_iou: Any
) -> None:
    """Largest and mean error, under the caller's autocast, are at most twice the official ones."""
    official = official_video("t", "sam2.1", 256)
    ours, exact = build_ours_and_exact(official)
    truth = replay(exact, several_objects, clip_folder)
    errors = {}
    ious = {}
    for name, predictor in (("ours", ours), ("official", official)):
        with torch.autocast("cpu", torch.bfloat16):
            results = replay(predictor, several_objects, clip_folder)
        pairs = [(a, b) for (_, _, a), (_, _, b) in zip(results, truth, strict=True)]
        differences = [(a - b).abs() for a, b in pairs]
        largest = max(d.max().item() for d in differences)
        mean = sum(d.mean().item() for d in differences) / len(differences)
        errors[name] = (largest, mean)
        ious_of_masks = [mask_iou(x, y) for a, b in pairs for x, y in zip(a, b, strict=True)]
        ious[name] = sum(ious_of_masks) / len(ious_of_masks)
    print(f"bfloat16 autocast against float64: (largest, mean) error {errors}, mean IoU {ious}")
    assert all(a <= 2 * b for a, b in zip(errors["ours"], errors["official"], strict=True))
    assert 1 - ious["ours"] <= 2 * (1 - ious["official"])


@pytest.mark.slow
@pytest.mark.parametrize("version", ["sam2", "sam2.1"])
@pytest.mark.parametrize("size", ["t", "s", "b+", "l"])
def test_masks_of_every_model_size_and_version_equal_the_official_ones(
    official_video: Any, clip_folder: str, mask_iou: Any, size: str, version: str
) -> None:
    compare(official_video(size, version, 256), several_objects, clip_folder, mask_iou)


@pytest.mark.slow
def test_masks_at_full_image_size_equal_the_official_ones(
    official_video: Any, clip_folder: str, mask_iou: Any
) -> None:
    compare(official_video("t", "sam2.1", 1024), one_click, clip_folder, mask_iou)
