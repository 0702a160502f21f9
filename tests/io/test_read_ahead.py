"""Frames that are decoded before they are asked for: the same frames, no waiting for what is there,
and errors where they belong.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sam2_fast import build_sam2_video_predictor
from sam2_fast.config import Sam2Config
from sam2_fast.io.frames import Frame, FrameSource
from sam2_fast.io.sequences import FrameFolder, FrameList
from sam2_fast.io.video_file import VideoFile

CLIP = Path(__file__).resolve().parents[2] / "examples" / "clip.mp4"
SMALL = Sam2Config(
    embed_dim=16, stages=(1, 1, 1, 1), global_blocks=(2,), windows=(8, 4, 4, 2), image_size=64
)
PATIENCE = 20  # seconds that no test should need


class Gated(FrameSource):
    """Frame t is full of t; reading waits for a gate, and is noted."""

    reads_ahead = True

    def __init__(self, frames: int = 10) -> None:
        super().__init__("gated", frames, 4, 6)
        self.gate, self.reads = threading.Event(), list[tuple[int, str]]()
        self.begun = threading.Event()

    def _read(self, index: int) -> Frame:
        self.reads.append((index, threading.current_thread().name))
        self.begun.set()
        assert self.gate.wait(PATIENCE)
        if index == 7:
            raise ValueError("gated: frame 7 is damaged")
        return np.full((4, 6, 3), index, np.uint8)


def test_a_frame_is_decoded_once_by_the_thread_of_the_source() -> None:
    source = Gated()
    source.read_ahead(3)
    assert source.begun.wait(PATIENCE)
    source.gate.set()
    assert int(source[3][0, 0, 0]) == 3
    assert [(i, name.startswith("sam2_fast-read-ahead")) for i, name in source.reads] == [(3, True)]


def test_what_is_in_the_window_waits_for_no_decoder() -> None:
    source = Gated()
    source.gate.set()
    assert int(source[2][0, 0, 0]) == 2
    source.gate.clear(), source.begun.clear()
    source.read_ahead(3)
    assert source.begun.wait(PATIENCE)
    assert int(source[2][0, 0, 0]) == 2, "while frame 3 is on its way"
    source.gate.set()
    source.close()


def test_an_error_is_raised_when_the_frame_is_asked_for() -> None:
    source = Gated()
    source.gate.set()
    source.read_ahead(7)
    with pytest.raises(ValueError, match="frame 7 is damaged"):
        source[7]
    assert int(source[8][0, 0, 0]) == 8


@pytest.mark.parametrize("index", [-1, 10])
def test_frames_that_are_not_there_are_not_read(index: int) -> None:
    source = Gated()
    source.read_ahead(index)
    source.close()
    source.read_ahead(3)
    assert not source.reads


def test_closing_waits_for_the_read_that_has_begun() -> None:
    source = Gated()
    source.read_ahead(1), source.read_ahead(2)
    assert source.begun.wait(PATIENCE)
    threading.Timer(0.05, source.gate.set).start()
    source.close()
    assert [i for i, _ in source.reads] == [1]
    with pytest.raises(ValueError, match="closed"):
        source[1]


def test_lists_are_read_by_whoever_asks() -> None:
    """Their items may be anything, and of any thread."""
    frames = FrameList([np.zeros((4, 6, 3), np.uint8)] * 3)
    frames.read_ahead(1)
    assert 1 not in frames._recent


@pytest.mark.parametrize(
    "order",
    [range(12), range(11, -1, -1), [0, 5, 6, 2, 11, 1]],
    ids=["forwards", "backwards", "jumps"],
)
def test_a_video_file_gives_the_same_frames(order: Any) -> None:
    with VideoFile(CLIP) as plain, VideoFile(CLIP) as ahead:
        for frame, following in zip(order, [*[*order][1:], 0], strict=True):
            found = ahead[frame]
            ahead.read_ahead(following)
            assert np.array_equal(found, plain[frame])


def test_propagation_reads_the_next_frame_ahead_and_none_past_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    for t in range(6):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(
            tmp_path / f"{t}.png"
        )
    asked: list[int] = []
    plain = FrameFolder.read_ahead
    monkeypatch.setattr(
        FrameFolder, "read_ahead", lambda self, index: (asked.append(index), plain(self, index))[1]
    )
    predictor = build_sam2_video_predictor(SMALL, device="cpu", seed=0)
    state = predictor.init_state(str(tmp_path))
    predictor.add_new_points_or_box(state, 2, 1, points=[[20, 20]], labels=[1])
    forwards = [t for t, _, _ in predictor.propagate_in_video(state, max_frame_num_to_track=2)]
    assert (forwards, asked) == ([2, 3, 4], [4])  # frame 2 is settled: nothing was read for it
    asked.clear()
    assert [t for t, _, _ in predictor.propagate_in_video(state, reverse=True)] == [
        2,
        1,
        0,
    ] and asked == [0]
