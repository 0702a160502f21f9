"""Sources of training clips on disk: annotation folders with frames, SA-V and SA-1B."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from sam2_fast.data.folders import Annotations, Mask, videos_in
from sam2_fast.data.listing import IMAGES, files_by_stem, same_number
from sam2_fast.data.sa1b import Sa1bAnnotations
from sam2_fast.data.sav import SavAnnotations
from sam2_fast.io.images import load_image
from sam2_fast.io.json_files import read_text
from sam2_fast.io.video import open_video
from sam2_fast.training.augment import FLIPPED, Augmentation, Pixels, augment
from sam2_fast.training.batches import Clip

TRIES = 100
"""Number of clips that are tried to get one with an object on its first frame."""


class Video(ABC):
    """The frames and masks of one video, read on demand."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of annotated frames."""

    @abstractmethod
    def masks(self, t: int) -> Mapping[int, Mask]:
        """Masks [H, W] of annotated frame `t`, by object."""

    @abstractmethod
    def image(self, t: int) -> Pixels:
        """Annotated frame `t`, [H, W, 3] uint8."""


class Stored(ABC):
    """The base class of the sources in this file.

    A clip consists of consecutive annotated frames, and of objects that are visible on its first
    frame.
    """

    share: float
    frames: int
    batch: int
    objects: int
    backwards: float
    augmentation: Augmentation

    @abstractmethod
    def videos(self) -> Sequence[str]:
        """Names of the videos. Raises FileNotFoundError or ValueError if there are none."""

    @abstractmethod
    def open(self, name: str) -> Video:
        """Open a video by its name."""

    @abstractmethod
    def unused(self) -> list[str]:
        """What the folders have and no clip shows, with the reason, one text each."""

    def clip(self, seed: int, size: int) -> Clip:
        """See `Source.clip`."""
        rng = np.random.default_rng([seed, 0])
        names = self.videos()
        short: set[str] = set()
        for _ in range(TRIES):
            name = names[int(rng.integers(len(names)))]
            video = self.open(name)
            if len(video) < self.frames:
                short.add(name)
                continue
            start = int(rng.integers(len(video) - self.frames + 1))
            times = list(range(start, start + self.frames))
            if rng.random() < self.backwards:
                times.reverse()
            masks_of_frames = [video.masks(times[0])]
            seen = [i for i, mask in masks_of_frames[0].items() if mask.any()]
            if seen:
                chosen = [int(i) for i in rng.permutation(seen)[: self.objects]]
                masks_of_frames += [video.masks(t) for t in times[1:]]
                empty = np.zeros_like(masks_of_frames[0][chosen[0]])
                masks = np.stack(
                    [[frame.get(i, empty) for i in chosen] for frame in masks_of_frames]
                )
                return augment(
                    [video.image(t) for t in times], masks, seed, size, self.augmentation
                )
        raise ValueError(
            f"source {self}: no clip of {self.frames} annotated frames shows an object on the "
            f"first frame, in {TRIES} tries"
            + (f"; fewer frames are annotated in {', '.join(sorted(short)[:5])}" if short else "")
        )


@dataclass(frozen=True)
class Folder(Stored):
    """DAVIS, MOSE, YouTube-VOS, LVOS, or your own videos.

    Frames are `<images>/<video>/<frame>.jpg`; `masks` is a folder of videos for `Annotations`.
    """

    images: str = "JPEGImages"
    masks: str = "Annotations"
    listed: str | None = None  # a text file with one video name per line; None: all in `masks`
    share: float = 1.0
    frames: int = 8
    batch: int = 1
    objects: int = 3
    backwards: float = 0.5
    augmentation: Augmentation = field(default_factory=Augmentation)

    def videos(self) -> Sequence[str]:
        return _listed(self.masks, self.listed)

    def open(self, name: str) -> Video:
        return _FolderVideo(Path(self.images) / name, Path(self.masks) / name)

    def unused(self) -> list[str]:
        names = self.videos()
        counts = {name: len(Annotations(Path(self.masks) / name).frames()) for name in names}
        lines = [
            f"{Path(self.masks) / name}: has {count} annotated frames, a clip has {self.frames}"
            for name, count in counts.items()
            if count < self.frames
        ]
        if self.listed is None and Path(self.images).is_dir():
            others = sorted(set(videos_in(self.images)) - set(names))
            lines += [f"{Path(self.images) / name}: has no annotations" for name in others]
        return lines


class _FolderVideo(Video):
    def __init__(self, images: Path, masks: Path) -> None:
        self._masks = Annotations(masks, is_binary=_is_binary(str(masks)))
        self._images = images
        if not images.is_dir():
            raise FileNotFoundError(
                f"images {images}: no such folder, but {masks} has annotations for it"
            )
        self._names = self._masks.frames()
        self._files = files_by_stem(images, IMAGES, "images")

    def __len__(self) -> int:
        return len(self._names)

    def masks(self, t: int) -> dict[int, Mask]:
        return self._masks.read(self._names[t])

    def image(self, t: int) -> Pixels:
        name = self._names[t]
        if name in self._files:
            return load_image(self._files[name])
        same = same_number(name, self._files)
        hint = f"; it has {same[0]}: names must be equal, rename the files" if same else ""
        raise FileNotFoundError(
            f"images {self._images / name}: no image of that name with one of "
            f"{', '.join(IMAGES)}{hint}"
        )


@dataclass(frozen=True)
class Sav(Stored):
    """The training videos of SA-V: a folder of `<video>.mp4` with `<video>_<annotated>.json`."""

    folder: str = "sav_train"
    annotated: str = "manual"  # or "auto"
    share: float = 1.0
    frames: int = 8
    batch: int = 1
    objects: int = 3
    backwards: float = 0.5
    augmentation: Augmentation = field(default_factory=Augmentation)

    def videos(self) -> Sequence[str]:
        return list(_with_suffix(self.folder, f"_{self.annotated}.json"))

    def open(self, name: str) -> Video:
        return _SavVideo(
            _with_suffix(self.folder, f"_{self.annotated}.json")[name],
            _file_of(self.folder, name, (".mp4",)),
        )

    def unused(self) -> list[str]:
        annotated = self.videos()
        return [
            f"{path}: has no {name}_{self.annotated}.json"
            for name, path in _with_suffix(self.folder, ".mp4").items()
            if name not in annotated
        ]


class _SavVideo(Video):
    def __init__(self, masks: Path, video: Path) -> None:
        self._masks = SavAnnotations(masks)
        self._video = open_video(video)
        last = SavAnnotations.video_frame(len(self._masks) - 1)
        if last >= len(self._video):
            raise ValueError(
                f"annotations {masks}: reach to frame {last}, but {video} has {len(self._video)} "
                f"frames"
            )

    def __len__(self) -> int:
        return len(self._masks)

    def masks(self, t: int) -> Mapping[int, Mask]:
        return self._masks.read(t)

    def image(self, t: int) -> Pixels:
        return np.asarray(self._video[SavAnnotations.video_frame(t)])


@dataclass(frozen=True)
class Sa1b(Stored):
    """The images of SA-1B: a folder of `sa_<n>.jpg` (or another image) with `sa_<n>.json`.

    Masks that cover more than the fraction `largest` of the image are left out.
    """

    folder: str = "sa1b"
    largest: float = 0.9
    share: float = 1.0
    batch: int = 1
    objects: int = 64
    augmentation: Augmentation = FLIPPED
    frames = 1
    backwards = 0.0

    def videos(self) -> Sequence[str]:
        return list(_with_suffix(self.folder, ".json"))

    def open(self, name: str) -> Video:
        masks = _with_suffix(self.folder, ".json")[name]
        return _Sa1bImage(masks, _file_of(self.folder, name, IMAGES), self.largest)

    def unused(self) -> list[str]:
        annotated = set(self.videos())
        return [
            f"{path}: has no {name}.json"
            for name, path in _with_suffix(self.folder, *IMAGES).items()
            if name not in annotated
        ]


class _Sa1bImage(Video):
    def __init__(self, masks: Path, image: Path, largest: float) -> None:
        self._masks = Sa1bAnnotations(masks)
        self._image = image
        self._largest = largest

    def __len__(self) -> int:
        return 1

    def masks(self, t: int) -> dict[int, Mask]:
        return {i: mask for i, mask in enumerate(self._masks) if mask.mean() <= self._largest}

    def image(self, t: int) -> Pixels:
        return load_image(self._image)


@lru_cache(maxsize=65536)
def _is_binary(masks: str) -> bool:
    """`Annotations.is_binary` of a video, which reads all frames of binary ones."""
    return Annotations(masks).is_binary()


@lru_cache(maxsize=64)
def _listed(masks: str, listed: str | None) -> list[str]:
    names = videos_in(masks)
    if listed is not None:
        listed_names = [
            line.strip()
            for line in read_text(listed, "list of videos", advice="split it").splitlines()
            if line.strip()
        ]
        if missing := sorted(set(listed_names) - set(names)):
            raise FileNotFoundError(
                f"annotations {Path(masks) / missing[0]}: no such folder, but {listed} lists it"
            )
        names = listed_names
    if not names:
        raise ValueError(f"annotations {masks}: expected a folder for each video, got none")
    return names


@lru_cache(maxsize=64)
def _with_suffix(folder: str, *suffixes: str) -> dict[str, Path]:
    """The files with one of the suffixes, by their names without it."""
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"source {folder}: no such folder")
    files = files_by_stem(folder, suffixes, "source")
    if not files:
        raise ValueError(f"source {folder}: expected files named *{suffixes[0]}, got none")
    return files


def _file_of(folder: str, name: str, suffixes: tuple[str, ...]) -> Path:
    """The file of a video or image, which its annotations need."""
    files = _with_suffix(folder, *suffixes)
    if name not in files:
        raise FileNotFoundError(
            f"source {Path(folder) / name}: no file of that name with one of "
            f"{', '.join(suffixes)}, but it has annotations"
        )
    return files[name]
