"""Sources of frames after interrupts, and in several threads: frame k is frame k, or an error."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sam2_fast.io.video import FrameGoneError, open_video
from tests.reliability.faults import HOW_MANY, InterruptedLine, files_of, positions_of, raises
from tests.reliability.racing import race
from tests.video.conftest import moving_frames, write_clip

CLIP = moving_frames(9)


def animation(folder: Path) -> Any:
    pages = [Image.fromarray(frame) for frame in CLIP]
    pages[0].save(folder / "clip.webp", save_all=True, append_images=pages[1:], lossless=True)
    return folder / "clip.webp"


def images(folder: Path) -> Any:
    for number, frame in enumerate(CLIP):
        Image.fromarray(frame).save(folder / f"{number}.png")
    return folder


SOURCES: dict[str, Callable[[Path], Any]] = {
    "video": lambda folder: write_clip(folder / "clip.mp4", CLIP),
    "animation": animation,
    "folder": images,
    "array": lambda folder: CLIP,
    "iterator": lambda folder: iter(CLIP),
}


def opened(name: str, source: Any) -> Any:
    frames = open_video(iter(CLIP) if name == "iterator" else source)
    frames.window = 1  # every frame is decoded again
    return frames


@pytest.mark.reliability("interrupts", "29")
@pytest.mark.parametrize("most", HOW_MANY)
@pytest.mark.parametrize("name", SOURCES)
def test_an_interrupted_read_does_not_shift_later_frames(
    name: str, tmp_path: Path, most: int
) -> None:
    source = SOURCES[name](tmp_path)
    expected = [frame.copy() for frame in opened(name, source)]
    files = files_of("io/*.py")

    def read(frames: Any) -> None:
        for number in (0, 1, 2, 5):
            frames[number]

    positions = positions_of(
        partial(read, opened(name, source)), InterruptedLine(files=files), most
    )
    for position in positions:
        frames = opened(name, source)
        fault = InterruptedLine(position, files)
        assert raises(partial(read, frames), fault)
        for number in (3, 6, 2, 8):
            try:
                pixels = frames[number]
            except (IndexError, ValueError, FrameGoneError):
                assert name == "iterator"  # what an iterator has returned cannot be read again
                continue
            assert np.array_equal(pixels, expected[number]), (fault.where, number)


@pytest.mark.reliability("37")
@pytest.mark.parametrize("name", ["video", "animation", "folder", "array"])
def test_threads_may_share_a_source(name: str, tmp_path: Path) -> None:
    source = SOURCES[name](tmp_path)
    expected = [frame.copy() for frame in opened(name, source)]
    frames = opened(name, source)
    wrong: list[Any] = []

    def read(seed: int) -> None:
        for number in np.random.default_rng(seed).integers(0, len(expected), 12):
            frames.read_ahead(int(number))
            if not np.array_equal(frames[number], expected[number]):
                wrong.append((seed, number))

    with frames:
        race(*[partial(read, seed) for seed in range(4)])
    assert wrong == []
