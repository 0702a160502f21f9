"""Outputs that do not mix, devices, options, and file names of the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sam2_fast
from sam2_fast.io import load_masks_json
from sam2_fast.video import full_size, tracker
from tests.cli.commands import EXAMPLES, FRAMES, SMALL, STILL, run, summary

CLICK = "--point 40,212"
SHORT = "--max-frames 2 --no-overlay"


def names(folder: str | Path) -> set[str]:
    """Relative paths of the files of a folder."""
    root = Path(folder)
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


@pytest.mark.field("B06")
@pytest.mark.parametrize(
    ("command", "longer", "shorter"),
    [
        (
            f"track {FRAMES} {SMALL}",
            f"{CLICK} --object 2:point=350,150 {SHORT}",
            f"{CLICK} {SHORT}",
        ),
        (
            f"track {FRAMES} {SMALL} --no-overlay",
            f"{CLICK} --max-frames 3",
            f"{CLICK} --max-frames 2 --format davis",
        ),
        (f"segment {STILL} {SMALL}", f"{CLICK} --object 2:point=350,150", f"{CLICK} --no-overlay"),
        (
            f"everything {STILL} {SMALL} --points-per-side 2 --pred-iou-thresh 0",
            "--stability-score-thresh 0 --format png",
            "--stability-score-thresh 0",
        ),
    ],
    ids=["track", "track davis", "segment", "everything"],
)
def test_a_run_is_not_mixed_with_an_earlier_one(command: str, longer: str, shorter: str) -> None:
    assert run(command, longer, "-o out").exit_code == 0
    first = names("out")
    result = run(command, shorter, "-o out")
    assert result.exit_code == 2 and "--overwrite" in result.stderr
    assert names("out") == first
    Path("out/notes.txt").write_text("other")
    assert run(command, shorter, "-o out --overwrite").exit_code == 0
    assert run(command, shorter, "-o fresh").exit_code == 0
    assert names("out") == names("fresh") | {"notes.txt"}


@pytest.mark.field("B06")
def test_two_videos_of_one_name_do_not_share_an_output_silently(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        shutil.copytree(FRAMES, tmp_path / folder / "clip")
    assert run("track a/clip", CLICK, SMALL, SHORT).exit_code == 0
    result = run("track b/clip", CLICK, SMALL, SHORT)
    assert result.exit_code == 2 and "clip_sam2" in result.stderr


@pytest.mark.field("B06")
@pytest.mark.parametrize("name", ["masks/001/00000.png", "overlay.png", "masks.json"])
def test_files_of_other_origin_are_never_removed(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded")

    for builder in ("build_sam2", "build_sam2_video_predictor"):
        monkeypatch.setattr(sam2_fast, builder, fail, raising=False)
    path = Path("out") / name
    path.parent.mkdir(parents=True)
    if path.suffix == ".png":
        Image.new("L", (4, 4)).save(path)
    else:
        path.write_text("{}")
    before = path.read_bytes()
    command = "segment" if name == "overlay.png" else "track"
    source = STILL if command == "segment" else FRAMES
    result = run(command, source, CLICK, SMALL, "-o out --overwrite")
    assert result.exit_code == 2 and "was not written by sam2-fast" in result.stderr
    assert names("out") == {name} and path.read_bytes() == before


@pytest.mark.field("B06")
def test_files_of_reports_are_not_replaced_without_the_option(tmp_path: Path) -> None:
    Path("scores.csv").write_text("earlier")
    result = run("evaluate", tmp_path, tmp_path, "-o scores.csv")
    assert result.exit_code == 2 and "scores.csv: exists; use --overwrite" in result.stderr
    result = run("simulate", tmp_path, tmp_path, "--weights nano --output scores.csv")
    assert result.exit_code == 2 and "scores.csv: exists; use --overwrite" in result.stderr
    assert Path("scores.csv").read_text() == "earlier"


@pytest.mark.field("B01")
@pytest.mark.parametrize("kind", ["png", "davis", "coco-rle"])
def test_results_have_the_names_of_the_frames(tmp_path: Path, kind: str) -> None:
    frames = tmp_path / "v1"
    frames.mkdir()
    for number, path in enumerate(sorted(FRAMES.iterdir())[:3], start=1):
        shutil.copy(path, frames / f"{5 * number:05d}{path.suffix}")
    facts = summary("track", frames, CLICK, SMALL, f"--format {kind} --no-overlay -o out")
    expected = ["00005", "00010", "00015"]
    assert [entry["name"] for entry in facts["tracked"]] == expected
    document = json.loads(Path("out/run.json").read_text())
    assert [(entry["frame"], entry["name"]) for entry in document["frames"]] == [
        *enumerate(expected)
    ]
    if kind == "coco-rle":
        rows = json.loads(Path("out/masks.json").read_text())["frames"]
        assert [(row["frame"], row["name"]) for row in rows] == [*enumerate(expected)]
        assert list(load_masks_json("out/masks.json")) == [0, 1, 2]
    else:
        folder = "masks" if kind == "davis" else "masks/001"
        assert names(Path("out") / folder) == {f"{name}.png" for name in expected}


@pytest.mark.field("B01")
def test_tracked_masks_of_a_folder_with_gaps_are_scored_on_their_own_frames(
    tmp_path: Path,
) -> None:
    truth = load_masks_json(EXAMPLES / "clip_truth.json")
    frames, annotations = tmp_path / "v1", tmp_path / "truth" / "v1"
    frames.mkdir()
    for number, path in enumerate(sorted(FRAMES.iterdir())):
        shutil.copy(path, frames / f"{20 + 5 * number:05d}{path.suffix}")
        sam2_fast.io.save_davis(annotations / f"{20 + 5 * number:05d}.png", {1: truth[number][2]})
    mask = ("--mask", annotations / "00020.png")
    assert (
        run("track", frames, *mask, "--weights nano --format davis --no-overlay -o o").exit_code
        == 0
    )
    shutil.move("o/masks", tmp_path / "masks" / "v1")
    scores = summary("evaluate", tmp_path / "truth", tmp_path / "masks", "--strict --ends")
    assert scores["j_and_f"] > 80, "the masks of other frames score below 60"


@pytest.mark.field("B27")
def test_a_backward_pass_from_the_first_frame_is_refused() -> None:
    result = run("track", FRAMES, CLICK, SMALL, "--reverse")
    assert result.exit_code == 2
    assert "nothing lies before frame 0" in result.stderr and "--both" in result.stderr
    assert not names(".")
    assert run("track", FRAMES, CLICK, SMALL, "--both --no-overlay").exit_code == 0


@pytest.mark.field("B28")
@pytest.mark.parametrize(
    "device", ["mps", "xpu", "meta", "cuda:99", "privateuseone", "hpu", "vulkan"]
)
@pytest.mark.parametrize("command", ["segment", "track", "everything", "doctor"])
def test_a_device_that_is_missing_is_named_with_those_there_are(command: str, device: str) -> None:
    if device.split(":")[0] == str(torch.accelerator.current_accelerator()):
        pytest.skip("this machine has the device")
    sources = {"segment": STILL, "everything": STILL, "track": FRAMES}
    prompt = CLICK if command in ("segment", "track") else ""
    source = [sources[command]] if command in sources else []
    result = run(command, *source, prompt, "--device", device)
    assert result.exit_code == 2
    assert f"--device {device}" in result.stderr and "cpu" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.field("U10")
@pytest.mark.parametrize("command", ["segment", "track", "everything"])
def test_an_output_that_cannot_be_written_is_refused_before_the_model_is_loaded(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded")

    for name in ("build_sam2", "build_sam2_video_predictor"):
        monkeypatch.setattr(f"sam2_fast.build_sam.{name}", fail)
        monkeypatch.setattr(sam2_fast, name, fail, raising=False)
    source = FRAMES if command == "track" else STILL
    prompt = "" if command == "everything" else CLICK
    result = run(command, source, prompt, SMALL, "-o /proc/nothing/out")
    assert result.exit_code == 2 and "/proc/nothing" in result.stderr


@pytest.mark.field("B32")
def test_the_version_is_printed() -> None:
    result = run("--version")
    assert result.exit_code == 0
    assert result.stdout == f"sam2-fast {sam2_fast.__version__}\n"


@pytest.mark.field("B32")
def test_the_bar_of_a_run_has_a_total() -> None:
    result = run("track", FRAMES, CLICK, SMALL, SHORT, "--progress")
    assert "2/2" in result.stderr


@pytest.mark.field("B14")
def test_everything_keeps_its_masks_if_a_format_cannot_hold_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sam2_fast.cli.everything.MAX_IDS", 0)
    thresholds = "--points-per-side 2 --pred-iou-thresh 0 --stability-score-thresh 0"
    result = run("everything", STILL, SMALL, thresholds, "--format davis -o out")
    assert result.exit_code == 2 and "masks.json as run lengths" in result.stderr
    document = json.loads(Path("out/masks.json").read_text())
    assert document["masks"] and all("segmentation" in entry for entry in document["masks"])
    assert Path("out/overlay.png").exists()


def rotated(path: Path, tag: int) -> None:
    """A grey JPEG of 96 x 64 stored pixels with a red block at (60..90, 10..30), and a tag."""
    pixels = np.full((64, 96, 3), 40, np.uint8)
    pixels[10:30, 60:90] = (220, 30, 30)
    exif = Image.Exif()
    exif[0x0112] = tag
    Image.fromarray(pixels).save(path, exif=exif, quality=95)


@pytest.mark.field("B13")
@pytest.mark.parametrize("command", ["segment", "track photo.jpg", "track frames"])
def test_clicks_of_a_viewer_find_the_object_of_a_rotated_photo(command: str) -> None:
    Path("frames").mkdir()
    for name in ("photo.jpg", "frames/0.jpg", "frames/1.jpg"):
        rotated(Path(name), 6)
    source = "photo.jpg" if command == "segment" else ""
    result = run(command, source, "--point 44,75 --weights nano -o out --no-overlay")
    assert result.exit_code == 0, result.output
    assert "orientation tag 6" in result.stderr
    name = "00000" if "photo" in command else "0"
    path = "001.png" if command == "segment" else f"masks/001/{name}.png"
    mask = sam2_fast.io.load_mask(Path("out") / path)
    assert mask.shape == (96, 64)
    truth = np.zeros((96, 64), bool)
    truth[60:90, 64 - 30 : 64 - 10] = True
    assert (mask & truth).sum() / (mask | truth).sum() > 0.7


@pytest.mark.field("U01")
@pytest.mark.parametrize("command", ["segment frames/0.png", "track frames"])
def test_a_dark_picture_of_12_bits_is_noted(command: str) -> None:
    Path("frames").mkdir()
    levels = np.random.default_rng(0).integers(0, 4096, (64, 96), dtype=np.uint16)
    Image.fromarray(levels).save("frames/0.png")
    result = run(command, SMALL, "--point 44,20")
    assert result.exit_code == 0, result.output
    assert "lowest 12 bits" in result.stderr


@pytest.mark.field("B13")
def test_a_photo_without_a_tag_has_no_note() -> None:
    rotated(Path("photo.jpg"), 1)
    result = run("segment photo.jpg --point 75,20", SMALL)
    assert result.exit_code == 0 and "orientation" not in result.stderr


@pytest.mark.field("B03", "B14")
@pytest.mark.parametrize(("value", "word"), [(0, "no pixel"), (1, "every pixel")])
def test_a_mask_prompt_without_an_edge_is_noted(value: int, word: str) -> None:
    sam2_fast.io.save_mask("mask.png", np.full((320, 480), value, bool))
    result = run("track", FRAMES, "--mask mask.png", SMALL, SHORT)
    assert result.exit_code == 0 and f"mask.png: covers {word}" in result.stderr


@pytest.mark.field("B14")
def test_a_picture_of_another_size_is_named_before_the_first_frame_is_tracked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(sam2_fast, "build_sam2_video_predictor", fail, raising=False)
    frames = tmp_path / "frames"
    shutil.copytree(FRAMES, frames)
    Image.new("RGB", (64, 48)).save(frames / "preview.jpg")
    result = run("track", frames, CLICK, SMALL)
    assert result.exit_code == 2 and "preview.jpg" in result.stderr
    assert "480 x 320" in result.stderr


@pytest.mark.field("B15")
@pytest.mark.parametrize(
    "name", ["2024-05-01T12:30:05", "http:x", "100%d", "Bäume, Wind", "file:a", "-clip", "pipe:1"]
)
def test_videos_and_outputs_have_names_of_any_kind(tmp_path: Path, name: str) -> None:
    pytest.importorskip("av", reason="reads and writes videos")
    shutil.copy(EXAMPLES / "clip.mp4", tmp_path / f"{name}.mp4")
    video, output = tmp_path / f"{name}.mp4", tmp_path / name
    result = run("track", video, CLICK, SMALL, "--max-frames 2", "--output", output)
    assert result.exit_code == 0, result.output
    assert (tmp_path / name / "overlay.mp4").stat().st_size > 0


@pytest.mark.field("B18")
@pytest.mark.parametrize("kind", ["png", "davis", "coco-rle"])
def test_masks_of_many_objects_are_written_a_few_at_a_time(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    at_once: list[int] = []
    upsample = full_size.upsample

    def count(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        at_once.append(len(logits))
        return upsample(logits, size)

    def fail(*_: object) -> None:
        raise AssertionError("the masks of all objects were computed at once")

    monkeypatch.setattr(full_size, "upsample", count)
    monkeypatch.setattr(full_size, "CHUNK_BYTES", 2 * 4 * 320 * 480)
    monkeypatch.setattr(tracker, "upsample", fail)
    boxes = " ".join(f"--box {9 * i},20,{9 * i + 40},90" for i in range(20))
    result = run("track", FRAMES, boxes, SMALL, f"--max-frames 2 --format {kind} -o out")
    assert result.exit_code == 0, result.output
    assert set(at_once) == {2} and sum(at_once) == 2 * 20
