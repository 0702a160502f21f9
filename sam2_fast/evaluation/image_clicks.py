"""Images with simulated clicks: IoU after 1, 3 and 5 of them (the SAM protocol; SAM 2 paper,
section 6.2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from sam2_fast.data.clicks import sample_one_point_from_error_center
from sam2_fast.data.folders import PathLike, read_labels
from sam2_fast.data.sa1b import Sa1bAnnotations
from sam2_fast.evaluation.metrics import region_similarity
from sam2_fast.evaluation.scores import Mask
from sam2_fast.io.images import load_image

_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


class ImagePredictor(Protocol):
    """What an evaluation asks of a predictor: the official calls."""

    def set_image(self, image: Any) -> None: ...
    def predict(
        self,
        point_coords: Any,
        point_labels: Any,
        *,
        mask_input: Any,
        multimask_output: bool,
        return_logits: bool,
    ) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]: ...


@dataclass(frozen=True)
class ImageScore:
    """IoU of one object, 0 to 1, by number of clicks."""

    image: str
    object: int
    iou: dict[int, float]


def image_clicks(
    predictor: ImagePredictor,
    image: Any,
    truth: Sequence[Mask],
    *,
    clicks: Sequence[int] = (1, 3, 5),
) -> npt.NDArray[np.float64]:
    """IoU of each object after each of `clicks` clicks: [objects, len(clicks)].

    image: what `set_image` takes; truth: masks [H, W] bool at its size, none empty (ValueError).
    The first click is the point deepest inside the object, and of the three masks it gives, the one
    of highest predicted IoU counts; each further click is where the last mask is most wrong, with
    that mask's logits as a hint, and gives one mask. Where nothing is wrong, no more is clicked.
    """
    predictor.set_image(image)
    found = np.zeros((len(truth), len(clicks)))
    for row, mask in enumerate(truth):
        if not mask.any():
            raise ValueError(f"truth: expected objects with pixels, got an empty mask at {row}")
        ious = _ious(
            predictor, torch.from_numpy(np.ascontiguousarray(mask))[None, None], max(clicks)
        )
        found[row] = [ious[min(count, len(ious)) - 1] for count in clicks]
    return found


def _ious(predictor: ImagePredictor, truth: torch.Tensor, most: int) -> list[float]:
    """IoU after 1, 2 ... clicks; shorter where nothing is wrong any more."""
    points: list[npt.NDArray[Any]] = []
    labels: list[int] = []
    mask: torch.Tensor | None = None
    hint: npt.NDArray[Any] | None = None
    ious: list[float] = []
    while len(ious) < most and not (mask is not None and torch.equal(mask, truth)):
        point, label = sample_one_point_from_error_center(truth, mask)
        points.append(point[0, 0].numpy())
        labels.append(int(label[0, 0]))
        masks, quality, low = predictor.predict(
            np.stack(points),
            np.array(labels),
            mask_input=hint,
            multimask_output=mask is None,
            return_logits=False,
        )
        best = int(np.argmax(quality))
        mask, hint = (
            torch.from_numpy(np.asarray(masks[best], dtype=bool))[None, None],
            low[best : best + 1],
        )
        ious.append(region_similarity(mask[0, 0], truth[0, 0]).item())
    return ious


def simulate_images(
    build: Callable[[], Any],
    images: PathLike,
    masks: PathLike,
    *,
    clicks: Sequence[int] = (1, 3, 5),
    progress: bool = True,
) -> list[ImageScore]:
    """`image_clicks` of every object of every image of a folder.

    masks: for each image `<name>.png`, a palette image whose pixels are ids, or `<name>.json`, as
    SA-1B has them. Images without are passed over; masks without an image are a FileNotFoundError.
    A benchmark's number is the mean over its masks.
    """
    found = (
        sorted(path for path in Path(masks).iterdir() if path.suffix.lower() in (".png", ".json"))
        if Path(masks).is_dir()
        else []
    )
    if not found:
        raise FileNotFoundError(
            f"masks {masks}: expected a folder of .png or .json files, got none"
        )
    predictor, rows = build(), list[ImageScore]()
    for path in tqdm(found, desc="images", disable=not progress):
        picture = next(
            (p for suffix in _PICTURES if (p := Path(images) / f"{path.stem}{suffix}").is_file()),
            None,
        )
        if picture is None:
            raise FileNotFoundError(
                f"images {Path(images) / path.stem}: no image of that name with one of "
                f"{', '.join(_PICTURES)}"
            )
        objects = _objects(path)
        ious = image_clicks(predictor, load_image(picture), list(objects.values()), clicks=clicks)
        rows += [
            ImageScore(path.stem, i, dict(zip(clicks, row, strict=True)))
            for i, row in zip(objects, ious.tolist(), strict=True)
        ]
    return rows


def _objects(path: Path) -> dict[int, Mask]:
    masks = (
        dict(enumerate(Sa1bAnnotations(path)))
        if path.suffix.lower() == ".json"
        else read_labels(path)
    )
    return {i: mask for i, mask in masks.items() if mask.any()}
