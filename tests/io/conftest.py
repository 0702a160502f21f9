"""Generated media, and the real media if they are next to the checkout."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

sys.path.append(str(Path(__file__).parent))  # for io_media, under any import mode of pytest

from io_media import picture

REAL = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture
def real() -> Path:
    if not REAL.is_dir():
        pytest.skip("needs the real media in ../shared/data next to the checkout")
    return REAL


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve PNG frames, 0.png to 11.png."""
    target = tmp_path / "frames"
    target.mkdir()
    for index in range(12):
        Image.fromarray(picture(index)).save(target / f"{index}.png")
    return target


@contextmanager
def unchanged_scheduling() -> Iterator[None]:
    """Restore the scheduling policy of the calling thread.

    SVT-AV1, when run as root, makes the calling thread a real-time thread, and with it all threads
    that it starts later.
    """
    if not hasattr(os, "sched_getscheduler"):
        yield
        return
    policy = os.sched_getscheduler(0)
    parameters = os.sched_getparam(0)
    try:
        yield
    finally:
        if os.sched_getscheduler(0) != policy:
            os.sched_setscheduler(0, policy, parameters)


@pytest.fixture
def make_video(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a video of 25 frames a second and returns its path.

    `make_video(name, frames=40, codec="libx264", size=(height, width), **encoder_options)`
    """
    av = pytest.importorskip("av", reason="video files need PyAV")

    def write(
        name: str,
        frames: int = 40,
        codec: str = "libx264",
        size: tuple[int, int] = (48, 64),
        **options: str,
    ) -> Path:
        if codec not in av.codecs_available:
            pytest.skip(f"this FFmpeg has no encoder {codec}")
        path = tmp_path / name
        with unchanged_scheduling(), av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=25)
            stream.height, stream.width = size
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            stream.options = options
            container.start_encoding()
            for index in range(frames):
                frame = av.VideoFrame.from_ndarray(picture(index, *size), format="rgb24")
                container.mux(stream.encode(frame))
            if frames:
                container.mux(stream.encode(None))
        return path

    return write
