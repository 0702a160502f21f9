"""Annotation folders in the layouts of the benchmarks.

A video is a folder in one of two layouts, which is detected for each video:
* one image per frame, `<video>/<frame>.png`, of object ids (DAVIS, MOSE, YouTube-VOS, LVOS) or of
    one object in 0 and 255 (DAVIS-2016);
* one folder per object, `<video>/<object>/<frame>.png`, each a mask file of any kind (SA-V).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sam2_fast.data.listing import files_by_stem, natural, same_number
from sam2_fast.io.mask_files import MaskFile, read_mask_file
from sam2_fast.io.mask_levels import levels_in

Mask = npt.NDArray[np.bool_]
PathLike = str | os.PathLike[str]
VOID = 255
"""The value of pixels that DAVIS excludes from scoring; 65535 in files of 16 bits."""


class Annotations:
    """The masks of one video on disk. Frames are file names without suffix, in order.

    Files other than PNG are passed over, and so are PNG files without a number in their names if
    others have one (`overlay.png`).
    is_binary: the result of `is_binary()` if it is known, which saves reading frames for it.
    Raises FileNotFoundError if there is no such folder, and
    ValueError, which names the file or folder, if it has neither layout.
    """

    def __init__(self, folder: PathLike, *, is_binary: bool | None = None) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise FileNotFoundError(f"annotations {folder}: no such folder")
        self._files = _frames_in(self.folder)
        self._folders = self._object_folders()
        self.one_file_an_object = bool(self._folders)
        self._is_binary = is_binary
        self._newest: MaskFile | None = None
        if self._files and self._folders:
            folders = next(iter(self._folders))
            raise ValueError(
                f"annotations {folder}: expected PNG files, or a folder for each object, got both: "
                f"{next(iter(self._files.values())).name} and {folders}/"
            )
        if not self._files and not self._folders:
            names = sorted(entry.name for entry in self.folder.iterdir())
            raise ValueError(
                f"annotations {folder}: expected PNG files, or a folder for each object, got "
                f"{', '.join(names[:3]) or 'an empty folder'}"
            )

    def objects(self) -> set[str]:
        """Names of the object folders; empty for a video of one image per frame."""
        return set(self._folders)

    def frames(self) -> list[str]:
        """Names of all frames that have a file, ordered by their numbers."""
        tables = self._folders.values() if self.one_file_an_object else [self._files]
        return sorted({name for table in tables for name in table}, key=natural)

    def read(self, frame: str) -> dict[int, Mask]:
        """The masks [H, W] of a frame's objects.

        Raises FileNotFoundError, which names the file, if a mask of the frame is missing.
        """
        if not self.one_file_an_object:
            return _objects_of(self._read(frame), self.is_binary())
        paths = {
            int(name): _path(table, self.folder / name, frame)
            for name, table in self._folders.items()
        }
        return {i: read_mask_file(path).mask for i, path in paths.items()}

    def void(self, frame: str) -> Mask | None:
        """Pixels [H, W] that are not scored, or None."""
        if self.one_file_an_object or self.is_binary():
            return None
        file = self._read(frame)
        unscored = file.labels == file.depth
        return unscored if unscored.any() else None

    def is_binary(self) -> bool:
        """Whether 255 is object 1, because no frame has another id; else 255 is not scored.

        Frames of 0 and 255 alone occur in both kinds of video, so all frames decide together.
        """
        if self._is_binary is None:
            self._is_binary = not self.one_file_an_object and not any(
                _has_ids(self._read(frame)) for frame in self.frames()
            )
        return self._is_binary

    def _read(self, frame: str) -> MaskFile:
        path = _path(self._files, self.folder, frame)
        if self._newest is None or self._newest.path != path:
            self._newest = read_mask_file(path)
            self._newest.require_ids()
        return self._newest

    def _object_folders(self) -> dict[str, dict[str, Path]]:
        """The files of each object folder. Folders without PNG files and numbers are no objects."""
        folders: dict[str, dict[str, Path]] = {}
        for entry in sorted(self.folder.iterdir()):
            if entry.name.startswith(".") or not entry.is_dir():
                continue
            files = _frames_in(entry)
            if not files and (self._files or not entry.name.isdecimal()):
                continue
            if not entry.name.isdecimal():
                raise ValueError(
                    f"annotations {entry}: expected a folder named by the object's number"
                )
            if twice := same_number(entry.name, folders):
                raise ValueError(
                    f"annotations {entry}: the folder {twice[0]} is of the same object; remove one"
                )
            folders[entry.name] = files
        return folders


def read_labels(path: Path) -> dict[int, Mask]:
    """The masks [H, W] of one image of object ids.

    0 is background and 255 is no object, but 255 is object 1 in an image of only 0 and 255.
    """
    file = read_mask_file(path)
    file.require_ids()
    return _objects_of(file, file.kind == "full")


def videos_in(root: PathLike) -> list[str]:
    """Names of the videos, which are the folders in `root`, in order."""
    if not Path(root).is_dir():
        raise FileNotFoundError(f"annotations {root}: no such folder")
    return sorted(
        path.name
        for path in Path(root).iterdir()
        if path.is_dir() and not path.name.startswith(".")
    )


def _frames_in(folder: Path) -> dict[str, Path]:
    files = files_by_stem(folder, (".png",), "annotations")
    numbered = {name: path for name, path in files.items() if any(map(str.isdecimal, name))}
    return numbered or files


def _path(files: dict[str, Path], folder: Path, frame: str) -> Path:
    if frame in files:
        return files[frame]
    raise FileNotFoundError(
        f"annotations {folder / frame}.png: no such file, but frame {frame} is needed; "
        f"{_existing(frame, files)}"
    )


def _existing(frame: str, names: Iterable[str]) -> str:
    existing = list(names)
    if same := same_number(frame, existing):
        return f"the folder has {same[0]}.png: names must be equal, rename the files"
    return f"the folder has the frames {', '.join(existing[:3]) or 'none'}..."


def _has_ids(file: MaskFile) -> bool:
    """Whether a file has an id other than 255 (65535 in files of 16 bits)."""
    return file.kind == "ids" and not set(levels_in(file.labels).tolist()) <= {0, file.depth}


def _objects_of(file: MaskFile, is_binary: bool) -> dict[int, Mask]:
    if is_binary or file.kind == "one":
        return {1: file.mask} if file.area else {}
    ids = levels_in(file.labels).tolist()
    return {i: file.labels == i for i in ids if i not in (0, file.depth)}
