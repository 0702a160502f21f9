"""Annotation folders in the layouts of the benchmarks.

A video is a folder in one of two layouts, which is detected for each video:
* one palette image per frame, `<video>/<frame>.png`, of object ids (DAVIS, MOSE, YouTube-VOS,
    LVOS);
* one folder per object, `<video>/<object>/<frame>.png`, with non-zero pixels on the object (SA-V).
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sam2_fast.io.images import open_image

Mask = npt.NDArray[np.bool_]
PathLike = str | os.PathLike[str]
VOID = 255
"""The value of pixels that DAVIS excludes from scoring."""


class Annotations:
    """The masks of one video on disk. Frames are file names without suffix, in order."""

    def __init__(self, folder: PathLike) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise FileNotFoundError(f"annotations {folder}: no such folder")
        entries = sorted(entry for entry in self.folder.iterdir() if not entry.name.startswith("."))
        if not entries:
            raise ValueError(
                f"annotations {folder}: expected PNG files, or a folder for each object, got an "
                f"empty folder"
            )
        self.one_file_an_object = not all(entry.suffix.lower() == ".png" for entry in entries)
        self._folders = (
            {entry.name: entry for entry in entries if entry.is_dir()}
            if self.one_file_an_object
            else {}
        )
        if self.one_file_an_object and not self._folders:
            raise ValueError(
                f"annotations {folder}: expected PNG files, or a folder for each object, got "
                f"{entries[0].name}"
            )

    def objects(self) -> set[str]:
        """Names of the object folders; empty for a video of palette images."""
        return set(self._folders)

    def frames(self) -> list[str]:
        """Names of all frames that have a file."""
        folders = self._folders.values() if self.one_file_an_object else [self.folder]
        return sorted(
            {
                path.stem
                for folder in folders
                for path in folder.glob("*.png")
                if not path.name.startswith(".")
            }
        )

    def read(self, frame: str) -> dict[int, Mask]:
        """The masks [H, W] of a frame's objects.

        Raises FileNotFoundError, which names the file, if a mask of the frame is missing.
        """
        if not self.one_file_an_object:
            return read_labels(self.folder / f"{frame}.png")
        paths = {_number(folder): folder / f"{frame}.png" for folder in self._folders.values()}
        missing = [path for path in paths.values() if not path.is_file()]
        if missing:
            raise FileNotFoundError(
                f"annotations {missing[0]}: no such file, but frame {frame} is needed"
            )
        return {i: _labels(path) != 0 for i, path in paths.items()}

    def void(self, frame: str) -> Mask | None:
        """Pixels [H, W] that are not scored, or None."""
        if self.one_file_an_object:
            return None
        unscored = _labels(self.folder / f"{frame}.png") == VOID
        return unscored if unscored.any() else None


def read_labels(path: Path) -> dict[int, Mask]:
    """The masks [H, W] of an image of object ids; 0 and 255 are not objects."""
    labels = _labels(path)
    return {int(i): labels == i for i in np.unique(labels) if i not in (0, VOID)}


def videos_in(root: PathLike) -> list[str]:
    """Names of the videos, which are the folders in `root`, in order."""
    if not Path(root).is_dir():
        raise FileNotFoundError(f"annotations {root}: no such folder")
    return sorted(
        path.name
        for path in Path(root).iterdir()
        if path.is_dir() and not path.name.startswith(".")
    )


def _number(folder: Path) -> int:
    if not folder.name.isdigit():
        raise ValueError(f"annotations {folder}: expected a folder named by the object's number")
    return int(folder.name)


def _labels(path: Path) -> npt.NDArray[np.uint8]:
    with open_image(path) as image:
        labels = np.asarray(image)
    if labels.ndim != 2:
        raise ValueError(
            f"annotations {path}: expected a palette or grey image of object ids, got one with "
            f"colours"
        )
    return labels
