"""Which frames and objects count, statistics of DAVIS, reports and folders."""

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


def square(at: int, side: int = 10) -> np.ndarray:
    mask = np.zeros((40, 60), dtype=bool)
    mask[at : at + side, at : at + side] = True
    return mask


NOTHING = np.zeros((40, 60), dtype=bool)


def test_an_object_counts_from_the_first_frame_on_which_it_is_seen_in_either() -> None:
    scores = VideoScores()
    for truth, found in (
        (NOTHING, NOTHING),
        (NOTHING, square(5)),
        (square(5), square(5)),
        (NOTHING, NOTHING),
    ):
        scores.add({3: truth}, {3: found})
    (row,) = scores.result("video")
    assert (row.object, row.frames, row.j) == (3, 3, 2 / 3)


def test_objects_that_the_truth_never_shows_are_left_out() -> None:
    scores = VideoScores()
    scores.add({1: square(5)}, {1: square(5), 2: square(20)})
    assert [row.object for row in scores.result("video")] == [1]


def test_an_object_without_a_mask_is_absent() -> None:
    scores = VideoScores()
    scores.add({1: square(5), 2: square(20)}, {1: square(5)})
    scores.add({1: square(5)}, {})
    assert [(row.j, row.frames) for row in scores.result("video")] == [(0.5, 2), (0.5, 2)]


def test_masks_of_two_sizes_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"expected one size in a frame, got \(40, 60\), \(60, 40\)"
    ):
        VideoScores().add({1: square(5)}, {1: square(5).T})


def test_statistics_by_hand() -> None:
    # eight frames: bins of DAVIS are frames 0..2, 2..4 (rounded to even: 2.75 -> 3, 4.5 -> 4, 6.25
    #     -> 6)
    mean, recall, decay = statistics_of([1.0, 1.0, 1.0, 0.6, 0.5, 0.4, 0.2, 0.0])
    assert mean == pytest.approx(4.7 / 8) and recall == 0.5
    assert decay == pytest.approx(np.mean([1.0, 1.0, 1.0]) - np.mean([0.4, 0.2, 0.0]))
    assert statistics_of([0.7]) == (0.7, 1.0, 0.0)


def row(video: str, number: int, j: float) -> ObjectScore:
    return ObjectScore.of(video, number, [(j, 0.5)])


def test_means_are_over_objects_and_groups_can_be_anything(tmp_path: Path) -> None:
    report = Report([row("a", 1, 0.2), row("a", 2, 0.4), row("b", 1, 0.9)])
    assert report.mean("j") == pytest.approx(0.5) and report.summary()["j_and_f"] == pytest.approx(
        50.0
    )
    assert {k: v.mean("j") for k, v in report.by_video().items()} == pytest.approx(
        {"a": 0.3, "b": 0.9}
    )
    sizes = {("a", 1): "small", ("a", 2): "large", ("b", 1): "small"}
    assert {k: len(v.objects) for k, v in report.grouped(sizes).items()} == {"small": 2, "large": 1}
    report.save(tmp_path / "r.csv"), report.save(tmp_path / "r.json")
    with (tmp_path / "r.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [r["video"] for r in rows] == ["all", "a", "a", "b"] and float(
        rows[1]["j"]
    ) == pytest.approx(20.0)
    assert json.loads((tmp_path / "r.json").read_text())["summary"]["objects"] == 3
    with pytest.raises(ValueError, match=r"expected a \.csv or \.json file"):
        report.save(tmp_path / "r.txt")


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two videos: one of palette images, one with a folder an object; predictions that are off on
    one frame.
    """
    truth, masks = tmp_path / "truth", tmp_path / "masks"
    for root, late in ((truth, 5), (masks, 8)):
        for t in range(5):
            save_davis(
                root / "davis" / f"{t:05d}.png", {1: square(5 if t != 2 else late), 2: square(25)}
            )
            for number in (0, 7):
                save_mask(
                    root / "sav" / f"{number:03d}" / f"{t:05d}.png", square(5 if t != 2 else late)
                )
    return truth, masks


@pytest.mark.parametrize("processes", [1, 2])
def test_folders_of_both_layouts(folders: tuple[Path, Path], processes: int) -> None:
    report = score_folders(*folders, processes=processes, progress=False)
    off = (7 * 7) / (200 - 7 * 7)
    expected = [
        ("davis", 1, (2 + off) / 3),
        ("davis", 2, 1.0),
        ("sav", 0, (2 + off) / 3),
        ("sav", 7, (2 + off) / 3),
    ]
    assert [(r.video, r.object, pytest.approx(r.j)) for r in report.objects] == expected
    assert all(r.frames == 3 for r in report.objects)  # without the first and the last
    assert all(r.frames == 5 for r in score_folders(*folders, ends=True, progress=False).objects)


def test_void_pixels_are_not_judged(tmp_path: Path) -> None:
    for t in range(3):
        labels = square(5).astype(np.uint8)
        labels[5:15, 15:20] = 255
        found = np.zeros((40, 60), dtype=bool)
        found[5:15, 5:20] = True
        path = tmp_path / "truth" / "v" / f"{t}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(labels).save(path)
        save_davis(tmp_path / "masks" / "v" / f"{t}.png", {1: found})
    (row,) = score_video(tmp_path / "truth", tmp_path / "masks", "v")
    assert row.j == row.f == 1.0


def test_what_is_missing_or_wrong_is_named(folders: tuple[Path, Path]) -> None:
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
        Image.new("RGB", (60, 40)).save(masks / "davis" / "00001.png")
        score_folders(truth, masks, videos=["davis"], progress=False)


def test_strict_wants_the_same_videos(folders: tuple[Path, Path]) -> None:
    truth, masks = folders
    save_davis(masks / "more" / "00000.png", {1: square(5)})
    assert {r.video for r in score_folders(truth, masks, progress=False).objects} == {
        "davis",
        "sav",
    }
    with pytest.raises(ValueError, match=r"videos without truth: \['more'\]"):
        score_folders(truth, masks, strict=True, progress=False)
