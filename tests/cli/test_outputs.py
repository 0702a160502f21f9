"""Outputs of the commands: masks, overlays, summaries, information and help."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sam2_fast
from sam2_fast.io import load_mask, load_masks_json, open_video, save_mask
from tests.cli.commands import EXAMPLES, FRAMES, SMALL, STILL, run, summary


def test_random_weights_are_reported() -> None:
    options = "--size tiny --max-frames 1 --no-overlay --json"
    result = run("track", FRAMES, "--point 40,212", SMALL, options)
    assert "RANDOM WEIGHTS" in result.stderr
    assert json.loads(result.stdout)["weights"] == "random (seed 0)"


def test_track_writes_a_mask_for_each_object_and_frame_and_an_overlay(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="the overlay video needs PyAV")
    prompts = ("--prompts", EXAMPLES / "clip_prompts.json")
    facts = summary("track", EXAMPLES / "clip.mp4", *prompts, SMALL, "--max-frames 3")
    assert (facts["frames"], facts["height"], facts["width"], facts["fps"]) == (3, 320, 480, 20)
    assert [entry["id"] for entry in facts["objects"]] == [1, 2, 3]
    masks = tmp_path / "clip_sam2" / "masks"
    names = sorted(path.name for path in (masks / "002").iterdir())
    assert names == [f"{index:05d}.png" for index in range(3)]
    assert load_mask(masks / "003" / "00002.png").shape == (320, 480)
    with open_video(tmp_path / "clip_sam2" / "overlay.mp4") as video:
        assert (len(video), video.height, video.width, video.fps) == (3, 320, 480, 20)


def test_every_format_has_the_same_masks(tmp_path: Path) -> None:
    boxes = "--box 2,174,78,250 --box 340,118,440,218"
    for name in ("png", "davis", "coco-rle"):
        options = f"--no-overlay --max-frames 2 --format {name} --output {name}"
        assert run("track", FRAMES, boxes, SMALL, options).exit_code == 0
    frames = load_masks_json(tmp_path / "coco-rle" / "masks.json")
    assert list(frames) == [0, 1]
    for frame, masks in frames.items():
        for object_id, mask in masks.items():
            png = tmp_path / "png" / "masks" / f"{object_id:03d}" / f"{frame:05d}.png"
            assert np.array_equal(mask, load_mask(png))
        davis = tmp_path / "davis" / "masks" / f"{frame:05d}.png"
        assert np.array_equal(masks[1] | masks[2], load_mask(davis))
        assert np.array_equal(masks[1], load_mask(davis, 1))


def test_the_overlay_of_a_video_can_be_an_animation(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="the overlay video needs PyAV")
    options = "--max-frames 3 --overlay-format webp --output out"
    facts = summary("track", FRAMES, "--point 40,212", SMALL, options)
    assert facts["frames"] == 3
    with Image.open(tmp_path / "out" / "overlay.webp") as animation:
        assert (animation.format, animation.n_frames, animation.size) == ("WEBP", 3, (480, 320))
    assert not (tmp_path / "out" / "overlay.mp4").exists()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--frame 2 --reverse", [2, 1, 0]),
        ("--frame 1 --both --max-frames 2", [1, 2, 0]),
        ("--frame 8", [8, 9]),
    ],
)
def test_frames_are_tracked_in_the_requested_direction(
    tmp_path: Path, flags: str, expected: list[int]
) -> None:
    pytest.importorskip("av", reason="the overlay video needs PyAV")
    options = "--format coco-rle --output out"
    facts = summary("track", FRAMES, "--point 60,190", flags, SMALL, options)
    assert list(load_masks_json(tmp_path / "out" / "masks.json")) == expected
    assert facts["frames"] == len(expected)
    with open_video(tmp_path / "out" / "overlay.mp4") as video:
        assert len(video) == len(expected)


def test_track_accepts_a_mask_file_as_prompt_and_writes_it_on_its_frame(tmp_path: Path) -> None:
    truth = load_masks_json(EXAMPLES / "clip_truth.json")[0][2]
    save_mask("crate.png", truth)
    summary("track", FRAMES, "--mask crate.png", SMALL, "--no-overlay --max-frames 1")
    mask = load_mask(tmp_path / "clip_frames_sam2" / "masks" / "001" / "00000.png")
    assert (mask & truth).sum() / (mask | truth).sum() > 0.8


def test_the_progress_bar_is_written_to_stderr() -> None:
    options = "--no-overlay --max-frames 1 --progress --json"
    result = run("track", FRAMES, "--point 40,212", SMALL, options)
    assert "tracking" in result.stderr
    json.loads(result.stdout)


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("png", ["001.png", "002.png", "003.png"]),
        ("davis", ["masks.png"]),
        ("coco-rle", ["masks.json"]),
    ],
)
def test_segment_writes_a_mask_for_each_object(tmp_path: Path, name: str, files: list[str]) -> None:
    prompts = ("--prompts", EXAMPLES / "still_prompts.json")
    facts = summary("segment", STILL, *prompts, SMALL, f"--format {name}")
    written = {path.name for path in (tmp_path / "still_sam2").iterdir()}
    assert written == {*files, "overlay.png"}
    assert [entry["id"] for entry in facts["objects"]] == [1, 2, 3]
    assert all({"id", "score", "area", "bbox"} == set(entry) for entry in facts["objects"])
    assert facts["weights"] == "nano"


def test_segment_accepts_a_mask_as_hint_and_prints_a_sentence(tmp_path: Path) -> None:
    save_mask("crate.png", load_masks_json(EXAMPLES / "still_truth.json")[0][2])
    result = run("segment", STILL, "--mask crate.png", SMALL, "--no-overlay")
    assert result.exit_code == 0, result.output
    assert "1 objects, weights nano" in result.stdout


@pytest.mark.parametrize("name", ["png", "davis", "coco-rle"])
def test_everything_writes_records_of_all_masks(tmp_path: Path, name: str) -> None:
    thresholds = "--points-per-side 3 --pred-iou-thresh 0 --stability-score-thresh 0"
    image = EXAMPLES / "coffee.jpg"
    facts = summary("everything", image, thresholds, SMALL, f"--format {name}")
    document = json.loads((tmp_path / "coffee_sam2" / "masks.json").read_text())
    assert document["format"] == "sam2_fast.everything"
    assert (document["height"], document["width"]) == (400, 600)
    assert len(document["masks"]) == facts["masks"]
    areas = [entry["area"] for entry in document["masks"]]
    assert areas == sorted(areas)
    assert all(("segmentation" in entry) == (name == "coco-rle") for entry in document["masks"])


def test_info_lists_kernels_with_reasons_for_missing_ones() -> None:
    result = run("info")
    assert result.exit_code == 0
    assert sam2_fast.__version__ in result.stdout
    assert "kernels" in result.stdout
    facts = json.loads(run("info --json").stdout)
    assert set(facts) == {"versions", "devices", "extension", "kernels", "weights_cache"}
    reasons = [(row["backend"], row["reason_why_not"]) for row in facts["kernels"]]
    assert all(reason is None or reason for _, reason in reasons)
    assert ("torch", None) in reasons


def test_the_doctor_proves_the_kernels_of_this_cpu() -> None:
    """tests/proving/test_doctor.py has more tests of this command."""
    result = run("doctor", SMALL, "--model nano --no-timing")
    assert result.exit_code == 0, result.output
    assert " proved, 0 failed" in result.stdout and "at image size 64 in float32" in result.stdout


def test_every_command_has_help() -> None:
    for command in ("segment", "track", "everything", "info", "doctor"):
        result = run(command, "--help")
        assert result.exit_code == 0
        assert "--json" in result.stdout
