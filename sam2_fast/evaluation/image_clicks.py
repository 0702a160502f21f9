"""Simulated clicks on images: IoU after 1, 3 and 5 clicks (SAM 2 paper, section 6.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from sam2_fast.data.clicks import sample_one_point_from_error_center
from sam2_fast.data.folders import PathLike, read_labels
from sam2_fast.data.listing import IMAGES, files_by_stem
from sam2_fast.data.sa1b import Sa1bAnnotations
from sam2_fast.evaluation.folders import refuse_unjudged
from sam2_fast.evaluation.metrics import region_similarity
from sam2_fast.evaluation.scores import Mask, Unjudged
from sam2_fast.io.images import load_image
from sam2_fast.io.progress import Bar
from sam2_fast.ops.core.mask_values import bool_tensor


class ImagePredictor(Protocol):
    """The calls of the official predictor that the evaluation uses."""

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

    image: accepted by `set_image`.
    truth: masks [H, W] bool of the image's size. Raises ValueError if a mask is empty.
    The first click is the point deepest inside the object; of the three masks that it gives, the
    one with the highest predicted IoU counts. Each further click is the point deepest inside the
    error of the last mask, with the logits of this mask as a hint, and gives one mask. Clicking
    stops when the mask has no error.
    """
    predictor.set_image(image)
    scores = np.zeros((len(truth), len(clicks)))
    for row, mask in enumerate(truth):
        if not mask.any():
            raise ValueError(f"truth: expected objects with pixels, got an empty mask at {row}")
        ious = _ious(predictor, bool_tensor(mask, "truth")[None, None], max(clicks))
        scores[row] = [ious[min(count, len(ious)) - 1] for count in clicks]
    return scores


def _ious(predictor: ImagePredictor, truth: torch.Tensor, max_clicks: int) -> list[float]:
    """IoU after 1, 2, ... clicks; the list ends when the mask has no error."""
    points: list[npt.NDArray[Any]] = []
    labels: list[int] = []
    mask: torch.Tensor | None = None
    hint: npt.NDArray[Any] | None = None
    ious: list[float] = []
    while len(ious) < max_clicks and not (mask is not None and torch.equal(mask, truth)):
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
        mask = bool_tensor(masks[best], "masks")[None, None]
        hint = low[best : best + 1]
        ious.append(region_similarity(mask[0, 0], truth[0, 0]).item())
    return ious


class ImageScores(list[ImageScore]):
    """The scores of all objects of a folder, and what was not judged."""

    def __init__(self, scores: Iterable[ImageScore], unjudged: Sequence[Unjudged]) -> None:
        super().__init__(scores)
        self.unjudged = list(unjudged)


def simulate_images(
    build: Callable[[], Any],
    images: PathLike,
    masks: PathLike,
    *,
    clicks: Sequence[int] = (1, 3, 5),
    strict: bool = False,
    progress: bool = True,
) -> ImageScores:
    """`image_clicks` for every object of every image of a folder.

    masks: a folder with a file for each image: `<name>.png`, an image of object ids, or
        `<name>.json` in the format of SA-1B. Images without a file, and files without an object,
        are listed in `unjudged`; a file without an image raises FileNotFoundError.
    strict: raise ValueError if something is not judged.
    The score of a benchmark is the mean over its masks.
    """
    files = files_by_stem(masks, (".png", ".json"), "masks") if Path(masks).is_dir() else {}
    if not files:
        raise FileNotFoundError(
            f"masks {masks}: expected a folder of .png or .json files, got none"
        )
    pictures = files_by_stem(images, IMAGES, "images") if Path(images).is_dir() else {}
    if missing := [name for name in files if name not in pictures]:
        raise FileNotFoundError(
            f"images {Path(images) / missing[0]}: no image of that name with one of "
            f"{', '.join(IMAGES)}"
        )
    unjudged = [Unjudged(name, "has no mask file") for name in pictures if name not in files]
    refuse_unjudged(unjudged, strict, f"masks {masks}")
    predictor = build()
    rows: list[ImageScore] = []
    for name, path in Bar(files.items(), desc="images", disable=not progress):
        objects = _objects(path)
        if not objects:
            unjudged.append(Unjudged(name, "has no object"))
            continue
        image = load_image(pictures[name])
        ious = image_clicks(predictor, image, list(objects.values()), clicks=clicks)
        rows += [
            ImageScore(name, i, dict(zip(clicks, row, strict=True)))
            for i, row in zip(objects, ious.tolist(), strict=True)
        ]
    refuse_unjudged(unjudged, strict, f"masks {masks}")
    return ImageScores(rows, unjudged)


def _objects(path: Path) -> dict[int, Mask]:
    masks = (
        dict(enumerate(Sa1bAnnotations(path)))
        if path.suffix.lower() == ".json"
        else read_labels(path)
    )
    return {i: mask for i, mask in masks.items() if mask.any()}
