"""`open_video` opens every kind of video."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sam2_fast.io.frame_folder import FrameFiles, FrameFolder
from sam2_fast.io.frames import Frame, FrameGoneError, FrameSource
from sam2_fast.io.limits import (
    MAX_FRAMES,
    MAX_PIXELS,
    MAX_STREAMS,
    check_count,
    check_seekable,
)
from sam2_fast.io.picture_file import PictureFile, is_picture
from sam2_fast.io.sequences import Camera, FrameArray, FrameList, FrameStream
from sam2_fast.io.video_file import VideoFile

__all__ = ["Frame", "FrameGoneError", "FrameSource", "open_video"]


def open_video(
    source: Any,
    *,
    max_pixels: int = MAX_PIXELS,
    max_frames: int = MAX_FRAMES,
    max_streams: int = MAX_STREAMS,
    upright: bool = False,
) -> FrameSource:
    """Open a video and decode its first frame only. Close it, or use it in a `with` statement.

    source: a directory of numbered images; a video file, or its bytes (needs PyAV: `pip install
        "sam2-fast[video]"`); a picture file or its bytes, animated or not, which is recognised by
        its content; a list of arrays, Pillow images, tensors or paths; a numpy array [T,
        H, W, 3]; a torch tensor [T, 3, H, W] or [T, H, W, 3]; an iterator of frames of unknown
        length; a camera number; or a `FrameSource`, which is returned unchanged.
    max_pixels, max_frames: limits for files and streams, checked before decoding if the file's
        header contains the numbers. max_streams: limit of the tracks of a video file.
    upright: whether the orientation tags of image files are applied, as viewers do; see
        `load_image`. The orientation of video files is always applied.
    Raises ValueError for a video that cannot be read or is over a limit, FileNotFoundError for a
    path that does not exist, and TypeError for an object of another type.
    """
    if isinstance(source, FrameSource):
        return source
    limits: dict[str, Any] = {"max_pixels": max_pixels, "max_frames": max_frames}
    if isinstance(source, (str, os.PathLike)):
        return _open_path(Path(source), upright, limits, max_streams)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _open_file(bytes(source), upright, limits, max_streams)
    if isinstance(source, (np.ndarray, torch.Tensor)):
        return FrameArray(source)
    if isinstance(source, int) and not isinstance(source, bool):
        return Camera(source)
    if isinstance(source, Sequence):
        return _open_list(source, upright, limits)
    if (
        isinstance(source, Iterable)
        and not hasattr(source, "read")
        and not isinstance(source, (Image.Image, dict, set))
    ):
        return FrameStream(source, **limits)
    raise TypeError(
        "video: expected a directory, a video file or its bytes, a list or array of frames, an "
        "iterator, or a camera number, "
        f"got {type(source).__name__}"
    )


def _open_path(path: Path, upright: bool, limits: dict[str, Any], max_streams: int) -> FrameSource:
    if path.is_dir():
        return FrameFolder(path, upright=upright, **limits)
    if not path.exists():
        advice = "; write the data to a file, or pass its bytes" if str(path) == "-" else ""
        raise FileNotFoundError(f"video {path}: no such file or directory{advice}")
    check_seekable(path, f"video {path}")
    return _open_file(path, upright, limits, max_streams)


def _open_file(
    source: Path | bytes, upright: bool, limits: dict[str, Any], max_streams: int
) -> FrameSource:
    """The content decides what the file is, not its suffix."""
    try:
        picture = is_picture(source)
    except OSError as error:
        raise ValueError(f"video {source!s}: cannot be opened ({error.strerror})") from error
    if picture:
        return PictureFile(source, upright=upright, **limits)
    return VideoFile(source, max_streams=max_streams, **limits)


def _open_list(frames: Sequence[Any], upright: bool, limits: dict[str, Any]) -> FrameSource:
    if frames and all(isinstance(frame, (str, os.PathLike)) for frame in frames):
        check_count(len(frames), limits["max_frames"], "video")
        files = [Path(frame) for frame in frames]
        name = f"list of {len(files)} frames"
        return FrameFiles(name, files, max_pixels=limits["max_pixels"], upright=upright)
    return FrameList(frames, upright=upright, **limits)
