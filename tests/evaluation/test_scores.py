"""Scores of videos: which frames and objects count, DAVIS statistics, reports and folders."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sam2_fast.data import Annotations
from sam2_fast.evaluation import ObjectScore, Report, VideoScores, score_folders, score_video
from sam2_fast.evaluation.scores import statistics_of
from sam2_fast.io.masks import save_davis, save_mask


def square(corner: int, side: int = 10) -> np.ndarray:
    mask = np.zeros((40, 60), dtype=bool)
    mask[corner : corner + side, corner : corner + side] = True
    return mask


EMPTY = np.zeros((40, 60), dtype=bool)


def test_an_object_counts_from_its_first_frame_in_the_truth_or_the_prediction() -> None:
    scores = VideoScores()
    for truth, prediction in (
        (EMPTY, EMPTY),
        (EMPTY, square(5)),
        (square(5), square(5)),
        (EMPTY, EMPTY),
    ):
        scores.add({3: truth}, {3: prediction})
    (row,) = scores.result("video")
    assert (row.object, row.frames, row.j) == (3, 3, 2 / 3)


def test_objects_that_never_appear_in_the_truth_are_left_out() -> None:
    scores = VideoScores()
    scores.add({1: square(5)}, {1: square(5), 2: square(20)})
    assert [row.object for row in scores.result("video")] == [1]


def test_an_object_without_a_mask_counts_as_empty() -> None:
    scores = VideoScores()
    scores.add({1: square(5), 2: square(20)}, {1: square(5)})
    scores.add({1: square(5)}, {})
    assert [(row.j, row.frames) for row in scores.result("video")] == [(0.5, 2), (0.5, 2)]


def test_masks_of_different_sizes_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"expected one size in a frame, got \(40, 60\), \(60, 40\)"
    ):
        VideoScores().add({1: square(5)}, {1: square(5).T})


def test_hand_computed_statistics() -> None:
    # Eight frames. DAVIS divides them into bins at rounded positions (half to even): 2.75 -> 3,
    # 4.5 -> 4, 6.25 -> 6; neighbouring bins share a frame (0..2, 2..4 and so on).
    mean, recall, decay = statistics_of([1.0, 1.0, 1.0, 0.6, 0.5, 0.4, 0.2, 0.0])
    assert mean == pytest.approx(4.7 / 8) and recall == 0.5
    assert decay == pytest.approx(np.mean([1.0, 1.0, 1.0]) - np.mean([0.4, 0.2, 0.0]))
    assert statistics_of([0.7]) == (0.7, 1.0, 0.0)


def row(video: str, number: int, j: float) -> ObjectScore:
    return ObjectScore.of(video, number, [(j, 0.5)])


def test_means_are_over_objects_and_objects_can_be_grouped(tmp_path: Path) -> None:
    report = Report([row("a", 1, 0.2), row("a", 2, 0.4), row("b", 1, 0.9)])
    assert report.mean("j") == pytest.approx(0.5)
    assert report.summary()["j_and_f"] == pytest.approx(50.0)
    assert {k: v.mean("j") for k, v in report.by_video().items()} == pytest.approx(
        {"a": 0.3, "b": 0.9}
    )
    sizes = {("a", 1): "small", ("a", 2): "large", ("b", 1): "small"}
    assert {k: len(v.objects) for k, v in report.grouped(sizes).items()} == {"small": 2, "large": 1}
    report.save(tmp_path / "r.csv")
    report.save(tmp_path / "r.json")
    with (tmp_path / "r.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [r["video"] for r in rows] == ["all", "a", "a", "b"]
    assert float(rows[1]["j"]) == pytest.approx(20.0)
    assert json.loads((tmp_path / "r.json").read_text())["summary"]["objects"] == 3
    with pytest.raises(ValueError, match=r"expected a \.csv or \.json file"):
        report.save(tmp_path / "r.txt")


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Folders of true and of predicted masks, which differ on one frame, of two videos.

    One video consists of palette images, the other has a folder for each object.
    """
    truth = tmp_path / "truth"
    masks = tmp_path / "masks"
    for root, corner_on_frame_2 in ((truth, 5), (masks, 8)):
        for t in range(5):
            mask = square(corner_on_frame_2 if t == 2 else 5)
            save_davis(root / "davis" / f"{t:05d}.png", {1: mask, 2: square(25)})
            for number in (0, 7):
                save_mask(root / "sav" / f"{number:03d}" / f"{t:05d}.png", mask)
    return truth, masks


@pytest.mark.parametrize("processes", [1, 2])
def test_folders_of_both_layouts_are_scored(folders: tuple[Path, Path], processes: int) -> None:
    report = score_folders(*folders, processes=processes, progress=False)
    iou_on_frame_2 = (7 * 7) / (200 - 7 * 7)
    mean = (2 + iou_on_frame_2) / 3
    expected = [("davis", 1, mean), ("davis", 2, 1.0), ("sav", 0, mean), ("sav", 7, mean)]
    assert [(r.video, r.object, pytest.approx(r.j)) for r in report.objects] == expected
    # The first and the last frame do not count.
    assert all(r.frames == 3 for r in report.objects)
    assert all(r.frames == 5 for r in score_folders(*folders, ends=True, progress=False).objects)


def test_void_pixels_are_ignored(tmp_path: Path) -> None:
    for t in range(3):
        labels = square(5).astype(np.uint8)
        labels[5:15, 15:20] = 255
        prediction = np.zeros((40, 60), dtype=bool)
        prediction[5:15, 5:20] = True
        path = tmp_path / "truth" / "v" / f"{t}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(labels).save(path)
        save_davis(tmp_path / "masks" / "v" / f"{t}.png", {1: prediction})
    (row,) = score_video(tmp_path / "truth", tmp_path / "masks", "v")
    assert row.j == row.f == 1.0


def test_errors_name_what_is_missing_or_wrong(folders: tuple[Path, Path]) -> None:
    truth, masks = folders
    (masks / "davis" / "00002.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"00002\.png"):
        score_folders(truth, masks, progress=False)
    save_davis(masks / "davis" / "00002.png", {1: square(5).T})
    with pytest.raises(ValueError, match="video davis, frame 00002: masks: expected one size"):
        score_folders(truth, masks, videos=["davis"], progress=False)
    for file in (masks / "sav" / "007").iterdir():
        file.unlink()
    (masks / "sav" / "007").rmdir()
    with pytest.raises(FileNotFoundError, match="007: no such folder"):
        score_folders(truth, masks, videos=["sav"], progress=False)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        Annotations(truth / "nowhere")
    with pytest.raises(ValueError, match="expected a palette or grey image"):
        colours = np.zeros((40, 60, 3), np.uint8)
        colours[:9] = (0, 90, 0)
        colours[9:20] = (90, 0, 0)
        Image.fromarray(colours).save(masks / "davis" / "00002.png")
        score_folders(truth, masks, videos=["davis"], progress=False)


def test_strict_requires_the_same_videos(folders: tuple[Path, Path]) -> None:
    truth, masks = folders
    save_davis(masks / "more" / "00000.png", {1: square(5)})
    report = score_folders(truth, masks, progress=False)
    assert {r.video for r in report.objects} == {"davis", "sav"}
    with pytest.raises(ValueError, match=r"videos without truth: \['more'\]"):
        score_folders(truth, masks, strict=True, progress=False)
