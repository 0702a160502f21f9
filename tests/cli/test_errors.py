"""Errors of the command line: one line, an exit code, and no incomplete files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.cli.commands import EXAMPLES, FRAMES, SMALL, STILL, run

CLICK = "--point 1,1"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["segment none.png", CLICK], "none.png: no such file"),
        (["segment", EXAMPLES / "render.py", CLICK], "not a readable JPEG"),
        (["track none.mp4", CLICK], "none.mp4: no such file"),
        (["track", EXAMPLES / "still_prompts.json", CLICK], "cannot be read as a video"),
        (
            ["track", FRAMES, CLICK, "--frame 99"],
            "frame 99 is out of range, the video has frames 0 to 9",
        ),
        (["track", FRAMES, CLICK, "--reverse --both"], "use only one of them"),
        (["track", FRAMES, "--object 300:point=1,1 --format davis"], "1 to 255"),
        (["track", FRAMES, "--mask none.png"], "none.png: no such file"),
        (["segment", STILL, CLICK, "--image-size 100"], "multiple of 32"),
        (["segment", STILL, CLICK, "--device quantum"], "expected cpu, cuda"),
        (["segment", STILL, CLICK, "--max-pixels 10"], "the limit is 10"),
        (["segment", STILL, CLICK, "--size giant"], "giant"),
        (["segment", STILL, "--colour"], "--colour"),
        (["dance"], "dance"),
    ],
)
def test_invalid_input_has_exit_code_2_and_no_traceback(
    arguments: list[object], message: str
) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_a_missing_cuda_device_is_an_error() -> None:
    result = run("segment", STILL, CLICK, f"--device cuda:{torch.cuda.device_count()}")
    assert result.exit_code == 2
    assert "CUDA devices" in result.stderr


def test_an_output_folder_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    assert "expected a directory" in run("segment", STILL, CLICK, "--output out").stderr


@pytest.mark.parametrize("weights", ["none.pt", "./none", "user/some-model", "none"])
@pytest.mark.parametrize("command", ["segment", "track", "everything"])
def test_unavailable_weights_have_exit_code_3(command: str, weights: str) -> None:
    source = FRAMES if command == "track" else STILL
    prompt = "" if command == "everything" else CLICK
    result = run(command, source, prompt, "--weights", weights)
    assert result.exit_code == 3
    assert weights in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_damaged_checkpoint_has_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "bad.pt").write_bytes(b"garbage")
    result = run("track", FRAMES, CLICK, "--weights bad.pt")
    assert result.exit_code == 2
    assert "bad.pt" in result.stderr


def test_an_interrupt_has_exit_code_130_and_leaves_no_incomplete_video(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from sam2_fast.io import overlay

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(overlay.VideoWriter, "write", interrupt)
    result = run("track", FRAMES, "--point 40,212", SMALL, "--output out --max-frames 2")
    assert result.exit_code == 130
    assert result.stderr.endswith("error: interrupted\n")
    assert not list((tmp_path / "out").glob("overlay*"))


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT to another process")
def test_sigint_ends_the_program_with_exit_code_130(tmp_path: Path) -> None:
    frames = tmp_path / "clip"  # long enough that only the signal can end the program in time
    frames.mkdir()
    for i in range(5000):
        (frames / f"{i}.png").symlink_to(STILL)
    options = "--point 40,212 --device cpu --no-overlay"
    command = [sys.executable, "-m", "sam2_fast.cli", "track", str(frames)]
    environment = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    process = subprocess.Popen(
        [*command, *options.split()],
        cwd=tmp_path,
        env={**os.environ, **environment},
        stderr=subprocess.PIPE,
        # A shell without job control starts its background jobs, such as this test, without SIGINT.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    masks = tmp_path / "clip_sam2" / "masks"
    deadline = time.monotonic() + 60
    while not masks.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors.decode()
    assert b"Traceback" not in errors
