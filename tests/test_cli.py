"""The command line: prompts are read as documented, files land where they should, and every failure
is one line and an exit code.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

import sam2_fast
from sam2_fast.cli.app import app
from sam2_fast.cli.prompts import Prompt, gather, parse_object, read_prompts
from sam2_fast.io import load_mask, load_masks_json, open_video
from sam2_fast.weights import hub

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SMALL = ["--image-size", "64", "--device", "cpu"]


def needs(name: str) -> pytest.MarkDecorator:
    """Skip while the library does not have a name yet."""
    try:
        getattr(sam2_fast, name)
    except (AttributeError, ImportError) as error:
        return pytest.mark.skip(reason=f"sam2_fast.{name} is not there: {error}")
    return pytest.mark.skipif(False, reason="")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run in an empty directory, on one thread, without network and without cached weights: random
    ones are used.
    """
    threads = torch.get_num_threads()
    # The models are tiny, and a busy machine makes threads wait for each other.
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "cached", lambda model_id: None)

    def nowhere(model_id: str) -> Path:
        raise hub.WeightsUnavailableError(f"weights {model_id!r}: offline")

    monkeypatch.setattr("sam2_fast.cli.weights._download", nowhere)
    yield
    torch.set_num_threads(threads)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def summary(*arguments: object) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


# prompts


def test_simple_flags_speak_of_object_one() -> None:
    assert gather(["10,20", "3.5,4,0"], ["1,2,30,40"], None, [], None, 7) == [
        Prompt(1, 7, ((10, 20), (3.5, 4)), (1, 0), (1, 2, 30, 40)),
    ]


def test_several_boxes_are_an_object_each() -> None:
    assert [(p.object_id, p.box) for p in gather([], ["0,0,1,1", "2,2,3,3"], None, [], None)] == [
        (1, (0, 0, 1, 1)),
        (2, (2, 2, 3, 3)),
    ]


def test_an_object_flag_names_id_frame_points_box_or_mask() -> None:
    assert parse_object("3:frame=2:point=1,2:point=5,6,0:box=0,0,9,9") == Prompt(
        3, 2, ((1, 2), (5, 6)), (1, 0), (0, 0, 9, 9)
    )
    assert parse_object("4:frame=1:mask=c:/masks/a.png") == Prompt(
        4, 1, mask=Path("c:/masks/a.png")
    )


def test_a_prompt_file_has_several_objects_and_frames_and_comes_sorted(tmp_path: Path) -> None:
    path = tmp_path / "prompts.json"
    path.write_text(
        json.dumps(
            {"objects": [{"id": 2, "frame": 5, "mask": "m.png"}, {"id": 1, "points": [[1, 2]]}]}
        )
    )
    assert gather([], [], None, ["9:frame=1:point=1,1"], path) == [
        Prompt(1, 0, ((1, 2),), (1,)),
        Prompt(9, 1, ((1, 1),), (1,)),
        Prompt(2, 5, mask=tmp_path / "m.png"),
    ]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "no prompt: give --point"),
        (["--point", "1"], "expected X,Y or X,Y,LABEL, got '1'"),
        (["--point", "a,b"], "expected X,Y"),
        (["--point", "nan,1"], "expected X,Y"),
        (["--point", "1,2,7"], "label 1 (object) or 0 (background), got 7"),
        (["--box", "1,2,3"], "expected X0,Y0,X1,Y1"),
        (["--box", "9,9,1,1"], "X0 <= X1"),
        (["--box", "0,0,1,1", "--box", "0,0,2,2", "--point", "1,1"], "use --object to mix"),
        (["--object", "x:point=1,1"], "whole number as id"),
        (["--object", "1:colour=red"], "cannot read 'colour=red'"),
        (["--object", "1"], "expected points, a box or a mask"),
        (["--object", "1:point=1,1:mask=a.png"], "a mask cannot be combined"),
        (["--object", "1:point=1,1", "--point", "2,2"], "prompted twice"),
        (["--prompts", "none.json"], "none.json"),
        (["--object", "1:frame=3:point=1,1"], "an image has frame 0 only"),
    ],
)
def test_prompts_that_make_no_sense_are_one_line_and_exit_code_two(
    flags: list[str], words: str
) -> None:
    result = run("segment", EXAMPLES / "still.png", *flags)
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("[]", "expected"),
        ('{"objects": []}', "at least one object"),
        ('{"objects": [5]}', "objects[0]"),
        ('{"objects": [{"points": [[1, 2]]}]}', "objects[0].id: expected a whole number"),
        ('{"objects": [{"id": 1, "points": [[1]]}]}', "objects[0].points"),
        ('{"objects": [{"id": 1, "points": [[1, NaN]]}]}', "finite"),
        ('{"objects": [{"id": 1, "points": [[1, 2]], "labels": [2]}]}', "objects[0].labels"),
        ('{"objects": [{"id": 1, "points": [[1, 2]], "labels": []}]}', "a label per point"),
        ('{"objects": [{"id": 1, "box": [5, 5, 1, 1]}]}', "X0 <= X1"),
        ('{"objects": [{"id": 1, "frame": -1, "points": [[1, 2]]}]}', "frame number"),
        ('{"objects": [{"id": 1, "point": [[1, 2]]}]}', "unknown key 'point'"),
        ('{"objects": [{"id": 1, "mask": 3}]}', "file name"),
    ],
)
def test_a_wrong_prompt_file_is_named_with_the_place(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "prompts.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r".") as caught:
        read_prompts(path)
    assert words in str(caught.value)


# failures


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["segment", "none.png", "--point", "1,1"], "none.png: no such file"),
        (["segment", EXAMPLES / "render.py", "--point", "1,1"], "not a readable JPEG"),
        (["track", "none.mp4", "--point", "1,1"], "none.mp4: no such file"),
        (["track", EXAMPLES / "still_prompts.json", "--point", "1,1"], "cannot be read as a video"),
        (
            ["track", EXAMPLES / "clip_frames", "--point", "1,1", "--frame", "99"],
            "frame 99 is out of range, the video has frames 0 to 9",
        ),
        (
            ["track", EXAMPLES / "clip_frames", "--point", "1,1", "--reverse", "--both"],
            "use only one of them",
        ),
        (
            ["track", EXAMPLES / "clip_frames", "--object", "300:point=1,1", "--format", "davis"],
            "1 to 255",
        ),
        (["track", EXAMPLES / "clip_frames", "--mask", "none.png"], "none.png: no such file"),
        (
            ["segment", EXAMPLES / "still.png", "--point", "1,1", "--image-size", "100"],
            "multiple of 32",
        ),
        (
            ["segment", EXAMPLES / "still.png", "--point", "1,1", "--device", "quantum"],
            "expected cpu, cuda",
        ),
        (
            ["segment", EXAMPLES / "still.png", "--point", "1,1", "--max-pixels", "10"],
            "the limit is 10",
        ),
        (["segment", EXAMPLES / "still.png", "--point", "1,1", "--size", "giant"], "giant"),
        (["segment", EXAMPLES / "still.png", "--colour"], "--colour"),
        (["dance"], "dance"),
    ],
)
def test_bad_input_is_exit_code_two_without_a_traceback(
    arguments: list[object], words: str
) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_a_cuda_device_that_is_not_there_is_refused() -> None:
    result = run(
        "segment",
        EXAMPLES / "still.png",
        "--point",
        "1,1",
        "--device",
        f"cuda:{torch.cuda.device_count()}",
    )
    assert result.exit_code == 2
    assert "CUDA devices" in result.stderr


def test_an_output_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    assert (
        "expected a directory"
        in run("segment", EXAMPLES / "still.png", "--point", "1,1", "--output", "out").stderr
    )


@pytest.mark.parametrize("weights", ["none.pt", "./none", "somebody/some-model", "none"])
@pytest.mark.parametrize("command", ["segment", "track", "everything"])
def test_named_weights_that_cannot_be_had_are_exit_code_three(command: str, weights: str) -> None:
    source = EXAMPLES / ("clip_frames" if command == "track" else "still.png")
    prompt = [] if command == "everything" else ["--point", "1,1"]
    result = run(command, source, *prompt, "--weights", weights)
    if isinstance(result.exception, ModuleNotFoundError) or "No module named" in result.stderr:
        pytest.skip(f"the library is not complete yet: {result.stderr}")
    assert result.exit_code == 3
    assert weights in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_damaged_checkpoint_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "bad.pt").write_bytes(b"garbage")
    result = run("track", EXAMPLES / "clip_frames", "--point", "1,1", "--weights", "bad.pt")
    assert result.exit_code == 2
    assert "bad.pt" in result.stderr


def test_ctrl_c_is_exit_code_130_and_leaves_no_half_video(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from sam2_fast.io import overlay

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(overlay.VideoWriter, "write", interrupt)
    result = run(
        "track",
        EXAMPLES / "clip_frames",
        "--point",
        "40,212",
        *SMALL,
        "--output",
        "out",
        "--max-frames",
        "2",
    )
    assert result.exit_code == 130
    assert result.stderr.endswith("error: interrupted\n")
    assert not list((tmp_path / "out").glob("overlay*"))


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT to another process")
def test_a_real_interrupt_ends_the_program_with_130(tmp_path: Path) -> None:
    arguments = [
        "track",
        EXAMPLES / "clip.mp4",
        "--point",
        "40,212",
        "--image-size",
        "1024",
        "--device",
        "cpu",
        "--no-overlay",
    ]
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "sam2_fast.cli", *map(str, arguments)],
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
    )
    masks = tmp_path / "clip_sam2" / "masks"
    deadline = time.monotonic() + 60
    while not masks.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors.decode()
    assert b"Traceback" not in errors


# what is written


@needs("SAM2VideoPredictor")
def test_random_weights_are_said_loudly() -> None:
    options = ["--size", "tiny", "--max-frames", "1", "--no-overlay", "--json"]
    result = run("track", EXAMPLES / "clip_frames", "--point", "40,212", *SMALL, *options)
    assert "RANDOM WEIGHTS" in result.stderr
    assert json.loads(result.stdout)["weights"] == "random (seed 0)"


@needs("SAM2VideoPredictor")
def test_track_writes_a_mask_per_object_and_frame_and_an_overlay(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="the overlay video needs PyAV")
    found = summary(
        "track",
        EXAMPLES / "clip.mp4",
        "--prompts",
        EXAMPLES / "clip_prompts.json",
        *SMALL,
        "--max-frames",
        3,
    )
    assert (found["frames"], found["height"], found["width"], found["fps"]) == (3, 320, 480, 20)
    assert [entry["id"] for entry in found["objects"]] == [1, 2, 3]
    masks = tmp_path / "clip_sam2" / "masks"
    assert sorted(path.name for path in (masks / "002").iterdir()) == [
        f"{index:05d}.png" for index in range(3)
    ]
    assert load_mask(masks / "003" / "00002.png").shape == (320, 480)
    with open_video(tmp_path / "clip_sam2" / "overlay.mp4") as video:
        assert (len(video), video.height, video.width, video.fps) == (3, 320, 480, 20)


@needs("SAM2VideoPredictor")
def test_davis_and_json_hold_the_masks_of_the_png_files(tmp_path: Path) -> None:
    common = [
        "track",
        EXAMPLES / "clip_frames",
        *("--box", "2,174,78,250", "--box", "340,118,440,218"),
        *SMALL,
        *("--no-overlay", "--max-frames", "2"),
    ]
    for kind in ("png", "davis", "coco-rle"):
        assert run(*common, "--format", kind, "--output", kind).exit_code == 0
    frames = load_masks_json(tmp_path / "coco-rle" / "masks.json")
    assert list(frames) == [0, 1]
    for frame, masks in frames.items():
        for object_id, mask in masks.items():
            assert np.array_equal(
                mask,
                load_mask(tmp_path / "png" / "masks" / f"{object_id:03d}" / f"{frame:05d}.png"),
            )
        assert np.array_equal(
            masks[1] | masks[2], load_mask(tmp_path / "davis" / "masks" / f"{frame:05d}.png")
        )
        assert np.array_equal(
            masks[1], load_mask(tmp_path / "davis" / "masks" / f"{frame:05d}.png", 1)
        )


@needs("SAM2VideoPredictor")
@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--frame", "2", "--reverse"], [2, 1, 0]),
        (["--frame", "1", "--both", "--max-frames", "2"], [1, 2, 0]),
        (["--frame", "8"], [8, 9]),
    ],
)
def test_directions(tmp_path: Path, flags: list[str], expected: list[int]) -> None:
    pytest.importorskip("av", reason="the overlay video needs PyAV")
    found = summary(
        "track",
        EXAMPLES / "clip_frames",
        "--point",
        "60,190",
        *flags,
        *SMALL,
        "--format",
        "coco-rle",
        "--output",
        "out",
    )
    assert list(load_masks_json(tmp_path / "out" / "masks.json")) == expected
    assert found["frames"] == len(expected)
    with open_video(tmp_path / "out" / "overlay.mp4") as video:
        assert len(video) == len(expected)


@needs("SAM2VideoPredictor")
def test_a_mask_file_is_a_prompt_and_comes_back_on_its_frame(tmp_path: Path) -> None:
    from sam2_fast.io import save_mask

    truth = load_masks_json(EXAMPLES / "clip_truth.json")[0][2]
    save_mask("crate.png", truth)
    summary(
        "track",
        EXAMPLES / "clip_frames",
        "--mask",
        "crate.png",
        *SMALL,
        "--no-overlay",
        "--max-frames",
        "1",
    )
    shown = load_mask(tmp_path / "clip_frames_sam2" / "masks" / "001" / "00000.png")
    assert (shown & truth).sum() / (shown | truth).sum() > 0.8


@needs("SAM2VideoPredictor")
def test_the_progress_bar_goes_to_stderr() -> None:
    result = run(
        "track",
        EXAMPLES / "clip_frames",
        "--point",
        "40,212",
        *SMALL,
        "--no-overlay",
        "--max-frames",
        "1",
        "--progress",
        "--json",
    )
    assert "tracking" in result.stderr
    json.loads(result.stdout)


@needs("SAM2ImagePredictor")
@pytest.mark.parametrize(
    ("kind", "files"),
    [
        ("png", ["001.png", "002.png", "003.png"]),
        ("davis", ["masks.png"]),
        ("coco-rle", ["masks.json"]),
    ],
)
def test_segment_writes_a_mask_for_every_object(
    tmp_path: Path, kind: str, files: list[str]
) -> None:
    found = summary(
        "segment",
        EXAMPLES / "still.png",
        "--prompts",
        EXAMPLES / "still_prompts.json",
        *SMALL,
        "--format",
        kind,
    )
    assert sorted(path.name for path in (tmp_path / "still_sam2").iterdir()) == sorted(
        [*files, "overlay.png"]
    )
    assert [entry["id"] for entry in found["objects"]] == [1, 2, 3]
    assert all({"id", "score", "area", "bbox"} == set(entry) for entry in found["objects"])
    assert found["weights"] == "nano"


@needs("SAM2ImagePredictor")
def test_segment_takes_a_mask_as_a_hint_and_answers_in_words(tmp_path: Path) -> None:
    from sam2_fast.io import save_mask

    save_mask("crate.png", load_masks_json(EXAMPLES / "still_truth.json")[0][2])
    result = run("segment", EXAMPLES / "still.png", "--mask", "crate.png", *SMALL, "--no-overlay")
    assert result.exit_code == 0, result.output
    assert "1 objects, weights nano" in result.stdout


@needs("SAM2AutomaticMaskGenerator")
@pytest.mark.parametrize("kind", ["png", "davis", "coco-rle"])
def test_everything_writes_its_records(tmp_path: Path, kind: str) -> None:
    loose = ["--points-per-side", "3", "--pred-iou-thresh", "0", "--stability-score-thresh", "0"]
    found = summary("everything", EXAMPLES / "coffee.jpg", *loose, *SMALL, "--format", kind)
    document = json.loads((tmp_path / "coffee_sam2" / "masks.json").read_text())
    assert (document["format"], document["height"], document["width"]) == (
        "sam2_fast.everything",
        400,
        600,
    )
    assert len(document["masks"]) == found["masks"]
    areas = [entry["area"] for entry in document["masks"]]
    assert areas == sorted(areas)
    assert all(("segmentation" in entry) == (kind == "coco-rle") for entry in document["masks"])


# info


def test_info_says_what_can_run_and_why_not() -> None:
    result = run("info")
    assert result.exit_code == 0
    assert sam2_fast.__version__ in result.stdout
    assert "kernels" in result.stdout
    facts = json.loads(run("info", "--json").stdout)
    assert set(facts) == {"versions", "devices", "extension", "kernels", "weights_cache"}
    assert all(row["reason_why_not"] is None or row["reason_why_not"] for row in facts["kernels"])
    assert any(
        row["backend"] == "torch" and row["reason_why_not"] is None for row in facts["kernels"]
    )


# doctor; more of it in tests/proving/test_doctor.py


def test_the_doctor_proves_the_kernels_of_this_cpu() -> None:
    result = run("doctor", *SMALL, "--model", "nano", "--no-timing")
    assert result.exit_code == 0, result.output
    assert " proved, 0 failed" in result.stdout and "at image size 64 in float32" in result.stdout


def test_help_is_given_for_every_command() -> None:
    for command in ("segment", "track", "everything", "info", "doctor"):
        result = run(command, "--help")
        assert result.exit_code == 0
        assert "--json" in result.stdout
