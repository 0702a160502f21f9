"""Runs that end early: finished frames stay, nothing temporary does, and `--resume` continues."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sam2_fast.cli import tracking
from sam2_fast.io import load_mask, load_masks_json
from sam2_fast.io.overlay import VideoWriter
from sam2_fast.video.tracker import Tracker
from tests.cli.commands import FRAMES, SMALL, run, summary

CLICK = "--point 40,212"
SIGNALS = [
    pytest.param(signal.SIGINT, 130, id="SIGINT"),
    pytest.param(signal.SIGTERM, 143, id="SIGTERM"),
    pytest.param(signal.SIGHUP, 129, id="SIGHUP"),
]
FORMATS = ["png", "davis", "coco-rle"]


def files_of(folder: Path) -> dict[str, bytes]:
    """The content of all files of a folder, by relative path."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def signal_at(monkeypatch: pytest.MonkeyPatch, frame: int, number: int, times: int = 1) -> None:
    """Send a signal to this process when the results of a frame are written."""
    label = tracking.Tracking._label

    def interrupted(self: Any, index: int) -> Any:
        if index == frame:
            for _ in range(times):
                os.kill(os.getpid(), number)
        return label(self, index)

    monkeypatch.setattr(tracking.Tracking, "_label", interrupted)


def finished(folder: Path) -> list[int]:
    """The frames that `run.json` lists, after a check that the run is not complete."""
    document = json.loads((folder / "run.json").read_text())
    assert document["complete"] is False
    return [entry["frame"] for entry in document["frames"]]


@pytest.fixture(autouse=True)
def usual_handlers() -> Iterator[None]:
    """The handlers of a program in a terminal: under nohup, for example, SIGHUP is ignored."""
    usual = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_DFL,
    }
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def no_rubbish(folder: Path) -> bool:
    return not [path for path in folder.rglob("*") if path.name.endswith(".tmp")]


@pytest.mark.field("B14", "B17")
@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_ends_the_run_after_a_whole_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    signal_at(monkeypatch, 2, number)
    before = signal.getsignal(number)
    result = run("track", FRAMES, CLICK, SMALL, "--format coco-rle --no-overlay -o out")
    assert result.exit_code == code
    assert "Traceback" not in result.output and "--resume" in result.stderr
    assert signal.getsignal(number) is before
    document = json.loads(Path("out/masks.json").read_text())
    assert document["complete"] is False
    assert [entry["frame"] for entry in document["frames"]] == [0, 1, 2] == finished(Path("out"))
    assert list(load_masks_json("out/masks.json")) == [0, 1, 2]
    assert no_rubbish(tmp_path)


@pytest.mark.field("B17")
def test_a_signal_that_is_ignored_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    signal_at(monkeypatch, 1, signal.SIGHUP)
    assert run("track", FRAMES, CLICK, SMALL, "--no-overlay --max-frames 3").exit_code == 0
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


@pytest.mark.field("B14")
@pytest.mark.parametrize("direction", ["", "--frame 6 --both", "--frame 7 --reverse"])
@pytest.mark.parametrize("kind", FORMATS)
def test_a_resumed_run_has_the_files_of_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, direction: str
) -> None:
    pytest.importorskip("av", reason="the overlay video needs PyAV")
    prompts = "--box 2,174,78,250 --box 60,160,440,218"  # they overlap
    options = ("track", FRAMES, prompts, SMALL, direction, f"--format {kind}")
    assert run(*options, "-o whole").exit_code == 0
    for frame in (4, 8) if not direction else (4,):
        with monkeypatch.context() as patch:
            signal_at(patch, frame, signal.SIGTERM)
            result = run(*options, "-o parts --resume")
            assert result.exit_code == 143, result.output
        assert frame in finished(Path("parts"))
    assert run(*options, "-o parts --resume").exit_code == 0
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "whole")
    facts = summary(*options, "-o parts --resume")
    assert facts["complete"] and facts["frames"] == len(facts["tracked"])


@pytest.mark.field("B14")
def test_a_resumed_run_tracks_only_the_frames_that_are_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = ("track", FRAMES, CLICK, SMALL, "--no-overlay -o out")
    with monkeypatch.context() as patch:
        signal_at(patch, 6, signal.SIGINT)
        run(*options)
    passed: list[int] = []
    pass_frame = Tracker._pass_frame

    def counted(self: Any, session: Any, frame: int, *rest: Any) -> Any:
        passed.append(frame)
        return pass_frame(self, session, frame, *rest)

    monkeypatch.setattr(Tracker, "_pass_frame", counted)
    assert run(*options, "--resume").exit_code == 0
    assert passed == [6, 7, 8, 9]  # a propagation starts at a frame that is known


@pytest.mark.field("B14")
def test_a_killed_run_is_resumed_from_its_rows(tmp_path: Path, monkeypatch: Any) -> None:
    options = ("track", FRAMES, CLICK, SMALL, "--format coco-rle --no-overlay")
    assert run(*options, "-o whole").exit_code == 0
    with monkeypatch.context() as patch:
        signal_at(patch, 5, signal.SIGINT)
        run(*options, "-o parts")
    for path in Path("parts/unfinished").glob("*.safetensors"):
        path.unlink()
    Path("parts/masks.json").unlink()
    with Path("parts/unfinished/rows.jsonl").open("ab") as rows:
        rows.write(b'{"frame": 6, "na')  # a row that was being written
    Path("parts/masks.json.0123abcd.tmp").write_text("half")
    assert run(*options, "-o parts --resume").exit_code == 0
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "whole")


@pytest.mark.field("B14")
def test_a_second_signal_ends_the_run_at_once_and_it_can_still_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("track", FRAMES, CLICK, SMALL, "--no-overlay")
    assert run(*options, "-o whole").exit_code == 0
    with monkeypatch.context() as patch:
        signal_at(patch, 3, signal.SIGINT, times=2)
        assert run(*options, "-o parts").exit_code == 130
    assert finished(Path("parts")) == [0, 1, 2]
    assert sorted(path.name for path in Path("parts/masks/001").iterdir()) == [
        "00000.png",
        "00001.png",
        "00002.png",
    ]
    assert run(*options, "-o parts --resume").exit_code == 0
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "whole")


def copied_frames(folder: Path, count: int = 5) -> Path:
    folder.mkdir()
    for path in sorted(FRAMES.iterdir())[:count]:
        shutil.copy(path, folder)
    return folder


@pytest.mark.field("B14")
@pytest.mark.parametrize("length", [0, 100, 2000])
@pytest.mark.parametrize("kind", FORMATS)
def test_a_damaged_frame_does_not_cost_the_frames_before_it(
    tmp_path: Path, kind: str, length: int
) -> None:
    frames = copied_frames(tmp_path / "frames")
    last = sorted(frames.iterdir())[-1]
    last.write_bytes(last.read_bytes()[:length])
    result = run("track", frames, CLICK, SMALL, f"--format {kind} -o out")
    assert result.exit_code == 2
    assert last.name in result.stderr and "4 of 5 frames are finished" in result.stderr
    assert finished(Path("out")) == [0, 1, 2, 3]
    assert no_rubbish(tmp_path)
    if kind == "png":
        assert load_mask("out/masks/001/00003.png").any()
    assert Path("out/overlay.mp4").stat().st_size > 0
    shutil.copy(FRAMES / last.name, last)  # the file has been repaired
    assert run("track", frames, CLICK, SMALL, f"--format {kind} -o out --resume").exit_code == 0
    assert run("track", frames, CLICK, SMALL, f"--format {kind} -o whole").exit_code == 0
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def limited(limit: int, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run `track` in a process that cannot write files of more than `limit` bytes."""
    import resource

    command = [sys.executable, "-m", "sam2_fast.cli", "track", str(FRAMES)]
    environment = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    return subprocess.run(
        [*command, *f"{CLICK} {SMALL} -o out".split(), *options],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        preexec_fn=partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit)),
    )


@pytest.mark.field("B17")
@pytest.mark.skipif(os.name == "nt", reason="sets a limit of POSIX")
@pytest.mark.parametrize("kind", ["png", "coco-rle"])
def test_a_full_disk_leaves_whole_files_and_nothing_temporary(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("av", reason="the overlay video needs PyAV")
    result = limited(8192, tmp_path, "--format", kind)
    assert result.returncode == 2 and "Traceback" not in result.stderr, result.stderr
    assert no_rubbish(tmp_path)
    assert not (tmp_path / "out" / "overlay.mp4").exists()
    run_file = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run_file["complete"] is False
    if kind == "png":  # the masks are small enough: only the overlay is missing
        assert len(run_file["frames"]) == 10
        assert len(list((tmp_path / "out" / "masks" / "001").iterdir())) == 10
    else:
        document = json.loads((tmp_path / "out" / "masks.json").read_text())
        assert document["frames"]


@pytest.mark.field("B17")
def test_an_error_of_the_overlay_does_not_stop_the_masks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("av", reason="the overlay video needs PyAV")
    options = ("track", FRAMES, CLICK, SMALL, "--max-frames 4")
    assert run(*options, "-o whole").exit_code == 0

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(VideoWriter, "write", fail)
        result = run(*options, "-o parts")
    assert result.exit_code == 2 and "No space left" in result.stderr
    assert finished(Path("parts")) == [0, 1, 2, 3]
    assert not Path("parts/overlay.mp4").exists()
    assert run(*options, "-o parts --resume").exit_code == 0
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "whole")


def test_a_run_inside_its_own_folder_of_frames_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = copied_frames(tmp_path / "frames")
    options = ("track", frames, CLICK, SMALL, "--no-overlay -o frames/out")
    with monkeypatch.context() as patch:
        signal_at(patch, 2, signal.SIGINT)
        assert run(*options).exit_code == 130
    assert run(*options, "--resume").exit_code == 0
    (frames / "9.png").write_bytes((frames / "00000.jpg").read_bytes())
    assert "has frames" in run(*options, "--resume").stderr


def test_a_run_that_fails_before_the_first_frame_leaves_nothing(tmp_path: Path) -> None:
    frames = copied_frames(tmp_path / "frames", 2)
    first = sorted(frames.iterdir())[0]
    first.write_bytes(first.read_bytes()[:2000])
    assert run("track", frames, CLICK, SMALL, "-o a/b/out").exit_code == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["frames"]


def test_a_run_is_resumed_with_its_own_settings_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("track", FRAMES, SMALL, "--no-overlay -o out")
    with monkeypatch.context() as patch:
        signal_at(patch, 2, signal.SIGINT)
        run(*options, CLICK)
    before = files_of(tmp_path / "out")
    result = run(*options, "--point 41,212 --resume")
    assert result.exit_code == 2 and "has prompts" in result.stderr
    result = run(*options, CLICK, "--format davis --resume")
    assert result.exit_code == 2 and 'has format "png"' in result.stderr
    assert files_of(tmp_path / "out") == before
    assert run(*options, CLICK, "--resume --overwrite").exit_code == 2


@pytest.mark.field("U05")
def test_two_processes_do_not_write_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl", reason="files are locked on POSIX only")
    options = ("track", FRAMES, CLICK, SMALL, "--no-overlay -o out")
    with monkeypatch.context() as patch:
        signal_at(patch, 2, signal.SIGINT)
        run(*options)
    with Path("out/unfinished/rows.jsonl").open("ab") as rows:
        fcntl.flock(rows.fileno(), fcntl.LOCK_EX)
        for flag in ("--resume", "--overwrite"):
            result = run(*options, flag)
            assert result.exit_code == 2 and "another process is writing there" in result.stderr
    assert run(*options, "--overwrite").exit_code == 0
