"""Frames decoded ahead of time: the same frames, no waiting for cached ones, errors on access."""

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
TIMEOUT = 20  # seconds


class GatedSource(FrameSource):
    """A source whose reads wait for an event and are recorded. All values of frame t are t."""

    reads_ahead = True

    def __init__(self, frames: int = 10) -> None:
        super().__init__("gated", frames, 4, 6)
        self.gate = threading.Event()
        self.started = threading.Event()
        self.reads: list[tuple[int, str]] = []

    def _read(self, index: int) -> Frame:
        self.reads.append((index, threading.current_thread().name))
        self.started.set()
        assert self.gate.wait(TIMEOUT)
        if index == 7:
            raise ValueError("gated: frame 7 is damaged")
        return np.full((4, 6, 3), index, np.uint8)


def test_a_frame_is_decoded_once_on_the_thread_of_the_source() -> None:
    source = GatedSource()
    source.read_ahead(3)
    assert source.started.wait(TIMEOUT)
    source.gate.set()
    assert int(source[3][0, 0, 0]) == 3
    assert [(i, name.startswith("sam2_fast-read-ahead")) for i, name in source.reads] == [(3, True)]


def test_a_frame_in_the_window_is_returned_while_another_one_is_decoded() -> None:
    source = GatedSource()
    source.gate.set()
    assert int(source[2][0, 0, 0]) == 2
    source.gate.clear()
    source.started.clear()
    source.read_ahead(3)
    assert source.started.wait(TIMEOUT)
    assert int(source[2][0, 0, 0]) == 2, "frame 3 is still being decoded"
    source.gate.set()
    source.close()


def test_a_decoding_error_is_raised_when_the_frame_is_accessed() -> None:
    source = GatedSource()
    source.gate.set()
    source.read_ahead(7)
    with pytest.raises(ValueError, match="frame 7 is damaged"):
        source[7]
    assert int(source[8][0, 0, 0]) == 8


@pytest.mark.parametrize("index", [-1, 10])
def test_frames_out_of_range_are_not_read(index: int) -> None:
    source = GatedSource()
    source.read_ahead(index)
    source.close()
    source.read_ahead(3)
    assert not source.reads


def test_closing_waits_for_the_read_in_progress() -> None:
    source = GatedSource()
    source.read_ahead(1)
    source.read_ahead(2)
    assert source.started.wait(TIMEOUT)
    threading.Timer(0.05, source.gate.set).start()
    source.close()
    assert [i for i, _ in source.reads] == [1]
    with pytest.raises(ValueError, match="closed"):
        source[1]


def test_lists_are_not_read_ahead() -> None:
    """Items of a list may belong to any thread, so they are read on the calling thread."""
    frames = FrameList([np.zeros((4, 6, 3), np.uint8)] * 3)
    frames.read_ahead(1)
    assert 1 not in frames._recent


@pytest.mark.parametrize(
    "order",
    [range(12), range(11, -1, -1), [0, 5, 6, 2, 11, 1]],
    ids=["forwards", "backwards", "jumps"],
)
def test_a_video_file_gives_the_same_frames_with_reading_ahead(order: Any) -> None:
    with VideoFile(CLIP) as plain, VideoFile(CLIP) as ahead:
        for frame, following in zip(order, [*[*order][1:], 0], strict=True):
            pixels = ahead[frame]
            ahead.read_ahead(following)
            assert np.array_equal(pixels, plain[frame])


def test_propagation_reads_the_next_frame_ahead_but_none_after_its_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    for t in range(6):
        pixels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{t}.png")
    requests: list[int] = []
    original = FrameFolder.read_ahead

    def record(source: FrameFolder, index: int) -> None:
        requests.append(index)
        original(source, index)

    monkeypatch.setattr(FrameFolder, "read_ahead", record)
    predictor = build_sam2_video_predictor(SMALL, device="cpu", seed=0)
    state = predictor.init_state(str(tmp_path))
    predictor.add_new_points_or_box(state, 2, 1, points=[[20, 20]], labels=[1])
    forwards = [t for t, _, _ in predictor.propagate_in_video(state, max_frame_num_to_track=2)]
    assert forwards == [2, 3, 4]
    assert requests == [
        4
    ]  # frame 2 has a prompt and its masks are known, so nothing is read for it
    requests.clear()
    backwards = [t for t, _, _ in predictor.propagate_in_video(state, reverse=True)]
    assert backwards == [2, 1, 0]
    assert requests == [0]
