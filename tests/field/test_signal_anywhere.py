"""A signal at any step of a run loses nothing, and `--resume` ends with the same files."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from sam2_fast.cli import runs, track_results, tracking
from sam2_fast.io import mask_writers, video_writer
from tests.cli.commands import FRAMES, SMALL, run
from tests.field.test_interruption import files_of, no_rubbish, usual_handlers

__all__ = ["usual_handlers"]

STEPS: list[tuple[Any, str]] = [
    (tracking.Tracking, "_prompt"),
    (tracking.Tracking, "_start"),
    (runs.Run, "start"),
    (runs.Run, "resume"),
    (runs.Run, "add"),
    (runs.Run, "close"),
    (track_results.ResultWriter, "__init__"),
    (track_results.ResultWriter, "repeat_finished_frames"),
    (track_results.ResultWriter, "draw_at_end"),
    (track_results.ResultWriter, "close"),
    (track_results.Drawing, "write"),
    (mask_writers.JsonWriter, "write_row"),
    (mask_writers.JsonWriter, "close"),
    (video_writer.VideoWriter, "close"),
    (tracking, "save_session"),
    (tracking, "remove_results"),
]


def signals_around(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, when: str) -> None:
    """Send SIGTERM to this process before or after the first call of a function."""
    function = getattr(owner, name)
    sent: list[int] = []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        if when == "before" and not sent:
            sent.append(1)
            os.kill(os.getpid(), signal.SIGTERM)
        result = function(*args, **kwargs)
        if not sent:
            sent.append(1)
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    monkeypatch.setattr(owner, name, interrupted)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """The files of uninterrupted runs, by their options."""
    return {}


@pytest.mark.field("B14", "B17")
@pytest.mark.parametrize("direction", ["", "--frame 2 --both"], ids=["forward", "both"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("owner", "name"), STEPS, ids=[name for _, name in STEPS])
def test_a_signal_at_any_step_loses_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    whole: dict[str, dict[str, bytes]],
    owner: Any,
    name: str,
    when: str,
    direction: str,
) -> None:
    pytest.importorskip("av", reason="the overlay video needs PyAV")
    options = ("track", FRAMES, "--point 40,212", SMALL, direction, "--format coco-rle")
    limit = "--max-frames 3"
    if direction not in whole:
        assert run(*options, limit, "-o whole").exit_code == 0
        whole[direction] = files_of(tmp_path / "whole")
    with monkeypatch.context() as patch:
        signals_around(patch, owner, name, when)
        first = run(*options, limit, "-o out")
        second = run(*options, limit, "-o out --resume")
    assert {first.exit_code, second.exit_code} <= {0, 143}, first.output + second.output
    assert no_rubbish(tmp_path)
    out = tmp_path / "out"
    if (out / "masks.json").exists():
        json.loads((out / "masks.json").read_text())
    last = run(*options, limit, "-o out --resume")
    assert last.exit_code == 0, last.output
    assert files_of(out) == whole[direction]
