"""Simulated users on folders: results, several processes, and errors that name the file."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sam2_fast import SAM2ImagePredictor, build_sam2_video_predictor
from sam2_fast.data import SyntheticVideo, World
from sam2_fast.evaluation import (
    Report,
    User,
    groups_from_csv,
    image_clicks,
    offline,
    save_curves,
    semi_supervised,
    simulate_images,
    simulate_users,
)
from sam2_fast.evaluation.scores import ObjectScore
from sam2_fast.io.rle import encode_rle

CLI = (sys.executable, "-m", "sam2_fast.cli")
WORLD = World(height=64, width=64, objects=(2, 2), size=(0.2, 0.3), absences=0.0, noise=0.0)
LENGTH = 5
BUILD = partial(build_sam2_video_predictor, "tiny", None, device="cpu", image_size=64, seed=0)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two videos of 5 frames with 2 objects."""
    for name, seed in (("a", 3), ("b", 5)):
        for part in ("images", "masks"):
            (tmp_path / part / name).mkdir(parents=True)
        for t, frame in enumerate(SyntheticVideo(seed, LENGTH, WORLD)):
            Image.fromarray(frame.image).save(tmp_path / "images" / name / f"{t:05d}.png")
            Image.fromarray(frame.labels).save(tmp_path / "masks" / name / f"{t:05d}.png")
    return tmp_path / "images", tmp_path / "masks"


def test_rounds_equal_those_of_each_object_evaluated_alone(folders: tuple[Path, Path]) -> None:
    images, masks = folders
    results = simulate_users(BUILD, images, masks, User(prompted_frames=2), progress=False)
    frames = list(SyntheticVideo(3, LENGTH, WORLD))
    by_hand = offline(
        BUILD(), [f.image for f in frames], [f.labels == 1 for f in frames], prompted_frames=2
    )
    rows = [row for row in results.rounds if (row.video, row.object) == ("a", 1)]
    assert [(r.prompted_frames, r.clicks, r.j, r.f) for r in rows] == [
        (k, r.clicks, r.j, r.f) for k, r in enumerate(by_hand, start=1)
    ]
    objects = {(row.video, row.object) for row in results.rounds}
    assert objects == {("a", 1), ("a", 2), ("b", 1), ("b", 2)}
    assert results.mean() == pytest.approx(np.mean([row.j_and_f for row in results.rounds]))
    assert list(results.curve()) == [1, 2]
    assert rows[0].seconds == pytest.approx(0.1 * LENGTH + 1 + 1.5 * rows[0].clicks)


def test_two_processes_give_the_results_of_one(folders: tuple[Path, Path]) -> None:
    user = User("semi-supervised", "click")
    one, two = (
        simulate_users(BUILD, *folders, user, processes=n, progress=False).rounds for n in (1, 2)
    )
    assert [(r.video, r.object) for r in one] == [(r.video, r.object) for r in two]
    assert [r.j for r in one] == pytest.approx([r.j for r in two], abs=1e-3)


def test_frames_without_annotations_are_tracked_but_not_scored(folders: tuple[Path, Path]) -> None:
    images, masks = folders
    for t in (1, 3):
        (masks / "a" / f"{t:05d}.png").unlink()
    user = User("semi-supervised")
    results = simulate_users(BUILD, images, masks, user, videos=["a"], progress=False)
    frames = list(SyntheticVideo(3, LENGTH, WORLD))
    truth = [f.masks() if t % 2 == 0 else None for t, f in enumerate(frames)]
    expected = semi_supervised(BUILD(), [f.image for f in frames], truth)
    assert [r.j for r in results.rounds] == [r.j for r in expected]
    with pytest.raises(
        ValueError, match=r"masks.a: expected masks of all 5 frames for offline, got 3"
    ):
        simulate_users(BUILD, images, masks, User(), videos=["a"], progress=False)


def test_errors_name_what_is_missing(folders: tuple[Path, Path]) -> None:
    images, masks = folders
    (images / "a" / "00002.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"a.00002: no such frame, but .* has its masks"):
        simulate_users(BUILD, images, masks, User(), videos=["a"], progress=False)
    with pytest.raises(
        FileNotFoundError, match=r"images.*nowhere.a: no such folder, and no a\.mp4"
    ):
        simulate_users(BUILD, images / "nowhere", masks, User(), videos=["a"], progress=False)
    with pytest.raises(ValueError, match="protocol: expected offline, online or semi-supervised"):
        User("sometimes")


def test_the_command_writes_rounds_and_a_curve(folders: tuple[Path, Path], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(BUILD().state_dict(), tmp_path / "tiny.safetensors")
    files = ("--weights", tmp_path / "tiny.safetensors", "--output", tmp_path / "rounds.csv")
    options = ("--protocol", "online", "--frames", 2, "--image-size", 64, "--device", "cpu")
    arguments = [*folders, *files, "--plot", tmp_path / "curve.svg", *options, "--json"]
    command = [*CLI, "simulate", *map(str, arguments)]
    completed = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ}, timeout=200, check=False
    )
    assert completed.returncode == 0, completed.stderr[-2000:]
    facts = json.loads(completed.stdout)
    rows = list(csv.DictReader((tmp_path / "rounds.csv").open()))
    assert len(rows) == 8 and list(facts["curve"]) == ["1", "2"]
    assert facts["mean_j_and_f"] == pytest.approx(np.mean([float(row["j_and_f"]) for row in rows]))
    assert (tmp_path / "curve.svg").read_text().startswith("<?xml")


def test_the_click_protocol_runs_on_a_folder_of_images(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    images, masks = folders
    build = partial(image_predictor, BUILD)
    rows = simulate_images(build, images / "a", masks / "a", clicks=(1, 2), progress=False)
    frames = list(SyntheticVideo(3, LENGTH, WORLD))
    masks_of_frame = list(frames[1].masks().values())
    expected = image_clicks(build(), frames[1].image, masks_of_frame, clicks=(1, 2)).tolist()
    assert [list(row.iou.values()) for row in rows if row.image == "00001"] == expected
    (tmp_path / "json").mkdir()
    annotations = [{"segmentation": encode_rle(mask, text=True)} for mask in masks_of_frame]
    (tmp_path / "json" / "00001.json").write_text(json.dumps({"annotations": annotations}))
    rows = simulate_images(build, images / "a", tmp_path / "json", clicks=(1, 2), progress=False)
    assert [list(row.iou.values()) for row in rows] == expected
    (images / "a" / "00001.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"a.00001: no image of that name"):
        simulate_images(build, images / "a", tmp_path / "json", progress=False)
    with pytest.raises(FileNotFoundError, match=r"expected a folder of \.png or \.json files"):
        simulate_images(build, images / "a", tmp_path / "none", progress=False)


def image_predictor(build: Callable[[], Any]) -> SAM2ImagePredictor:
    return SAM2ImagePredictor(build())


def test_groups_are_read_from_a_table(tmp_path: Path) -> None:
    rows = [
        ObjectScore(video, i, 3, j, j, 1.0, 1.0, 0.0, 0.0)
        for video, i, j in (("a", 1, 0.2), ("a", 2, 0.4), ("b", 1, 0.9))
    ]
    (tmp_path / "objects.csv").write_text("video,object,seen\na,1,yes\na,2,no\nb,1,no\n")
    (tmp_path / "videos.csv").write_text("video,age\na,18-26\nb,50+\n")
    seen = Report(rows).grouped(groups_from_csv(tmp_path / "objects.csv", "seen"))
    assert {name: report.mean("j") for name, report in seen.items()} == {
        "yes": 0.2,
        "no": pytest.approx(0.65),
    }
    age = Report(rows).grouped(groups_from_csv(tmp_path / "videos.csv", "age"))
    assert {name: report.mean("j") for name, report in age.items()} == {
        "18-26": pytest.approx(0.3),
        "50+": 0.9,
    }
    with pytest.raises(
        ValueError, match=r"objects\.csv: expected columns video and age, got video, object, seen"
    ):
        groups_from_csv(tmp_path / "objects.csv", "age")
    (tmp_path / "part.csv").write_text("video,age\na,18-26\n")
    with pytest.raises(ValueError, match="expected an entry for object 1 of video b"):
        Report(rows).grouped(groups_from_csv(tmp_path / "part.csv", "age"))


def test_youtube_vos_score_is_the_mean_over_seen_and_unseen(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    _, masks = folders
    (tmp_path / "classes.csv").write_text(
        "video,object,class\na,1,seen\na,2,seen\nb,1,unseen\nb,2,unseen\n"
    )
    shifted = tmp_path / "shifted" / "a"
    shifted.mkdir(parents=True)
    for path in (masks / "a").iterdir():
        Image.fromarray(np.roll(np.asarray(Image.open(path)), 3, axis=1)).save(shifted / path.name)
    (tmp_path / "shifted" / "b").symlink_to(masks / "b")
    command = [*CLI, "evaluate", str(masks), str(tmp_path / "shifted"), "--json"]
    command += ["--groups", str(tmp_path / "classes.csv"), "--by", "class"]
    completed = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    facts = json.loads(completed.stdout)
    seen, unseen = facts["groups"]["seen"], facts["groups"]["unseen"]
    assert unseen["j"] == unseen["f"] == 100 and seen["j"] < 95
    assert facts["mean_over_groups"] == pytest.approx(
        (seen["j"] + seen["f"] + unseen["j"] + unseen["f"]) / 4
    )


def test_a_plot_in_another_file_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a \.svg, \.png or \.pdf file"):
        save_curves({"a": {1: 0.5}}, tmp_path / "x.txt")
