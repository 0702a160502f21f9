"""`open_video` opens every kind of video."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sam2_fast.io.frames import Frame, FrameGoneError, FrameSource
from sam2_fast.io.limits import MAX_FRAMES, MAX_PIXELS
from sam2_fast.io.sequences import (
    FRAME_SUFFIXES,
    Camera,
    FrameArray,
    FrameFolder,
    FrameList,
    FrameStream,
)
from sam2_fast.io.video_file import VideoFile

__all__ = ["Frame", "FrameGoneError", "FrameSource", "open_video"]


def open_video(
    source: Any, *, max_pixels: int = MAX_PIXELS, max_frames: int = MAX_FRAMES
) -> FrameSource:
    """Open a video and decode its first frame only. Close it, or use it in a `with` statement.

    source: a directory of numbered images; a video file, or its bytes (needs PyAV: `pip install
        "sam2-fast[video]"`); a list of arrays, Pillow images, tensors or paths; a numpy array [T,
        H, W, 3]; a torch tensor [T, 3, H, W] or [T, H, W, 3]; an iterator of frames of unknown
        length; a camera number; or a `FrameSource`, which is returned unchanged.
    max_pixels, max_frames: limits for files and streams, checked before decoding if the file's
        header contains the numbers.
    Raises ValueError for a video that cannot be read or is over a limit, FileNotFoundError for a
    path that does not exist, and TypeError for an object of another type.
    """
    if isinstance(source, FrameSource):
        return source
    if isinstance(source, (str, os.PathLike)):
        return _open_path(Path(source), max_pixels, max_frames)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return VideoFile(bytes(source), max_pixels=max_pixels, max_frames=max_frames)
    if isinstance(source, (np.ndarray, torch.Tensor)):
        return FrameArray(source)
    if isinstance(source, int) and not isinstance(source, bool):
        return Camera(source)
    if isinstance(source, Sequence):
        return FrameList(source, max_pixels=max_pixels, max_frames=max_frames)
    if (
        isinstance(source, Iterable)
        and not hasattr(source, "read")
        and not isinstance(source, (Image.Image, dict, set))
    ):
        return FrameStream(source, max_pixels=max_pixels, max_frames=max_frames)
    raise TypeError(
        "video: expected a directory, a video file or its bytes, a list or array of frames, an "
        "iterator, or a camera number, "
        f"got {type(source).__name__}"
    )


def _open_path(path: Path, max_pixels: int, max_frames: int) -> FrameSource:
    if path.is_dir():
        return FrameFolder(path, max_pixels=max_pixels, max_frames=max_frames)
    if not path.exists():
        raise FileNotFoundError(f"video {path}: no such file or directory")
    if path.suffix.lower() in FRAME_SUFFIXES:
        return FrameList([path], max_pixels=max_pixels, max_frames=max_frames)
    return VideoFile(path, max_pixels=max_pixels, max_frames=max_frames)
