"""Images: ours against the official package with the same random weights; errors are judged by a
float64 run of our model.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sam2_fast.build_sam import build_sam2
from sam2_fast.image.automatic import SAM2AutomaticMaskGenerator
from sam2_fast.image.predictor import SAM2ImagePredictor
from sam2_fast.io.rle import decode_rle
from sam2_fast.ops.nms import batched_nms

SIDE = 256
PROMPTS: dict[str, dict[str, Any]] = {
    "click": dict(point_coords=[[100, 80]], point_labels=[1]),
    "clicks, single mask": dict(
        point_coords=[[100, 80], [20, 30], [7, 9]], point_labels=[1, 0, -1], multimask_output=False
    ),
    "box": dict(box=[10, 20, 200, 150]),
    "boxes": dict(box=[[10, 20, 200, 150], [0, 0, 50, 60], [30, 30, 31, 31]]),
    "box and clicks": dict(
        box=[10, 20, 200, 150], point_coords=[[100, 80], [15, 25]], point_labels=[1, 0]
    ),
    "mask alone": dict(mask_input="random"),
    "click and mask": dict(
        point_coords=[[100, 80]], point_labels=[1], mask_input="random", multimask_output=False
    ),
    "fractions": dict(point_coords=[[0.3, 0.4]], point_labels=[1], normalize_coords=False),
    "sets of clicks": dict(
        point_coords=[[[100, 80], [3, 4]], [[9, 9], [200, 100]]], point_labels=[[1, 0], [1, 1]]
    ),
    "outside the image": dict(point_coords=[[400, -5]], point_labels=[1]),
}


PHOTOGRAPH = np.array(Image.open(Path(__file__).resolve().parents[2] / "examples" / "coffee.jpg"))


def picture(seed: int = 0, height: int = 200, width: int = 300) -> np.ndarray:
    """Smooth colours with shapes on them."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    image = np.stack([x * 255 / width, y * 255 / height, (x + y) % 256], -1)
    for _ in range(5):
        cy, cx, r = (
            generator.integers(0, height),
            generator.integers(0, width),
            generator.integers(10, 60),
        )
        image[(y - cy) ** 2 + (x - cx) ** 2 < r * r] = generator.integers(0, 256, 3)
    return image.astype(np.uint8)


def arguments(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arrays, as upstream needs them."""
    mask = (
        np.random.default_rng(1).standard_normal((1, SIDE // 4, SIDE // 4)).astype(np.float32) * 5
    )
    return {
        k: mask
        if v == "random" and k == "mask_input"
        else np.array(v)
        if isinstance(v, list)
        else v
        for k, v in kwargs.items()
    }


QUICK = {("t", "sam2.1"), ("b+", "sam2")}
PRESETS = [
    pytest.param(
        (size, version),
        id=f"{size} {version}",
        marks=() if (size, version) in QUICK else pytest.mark.slow,
    )
    for version in ("sam2.1", "sam2")
    for size in ("t", "s", "b+", "l")
]


@pytest.fixture(scope="module", params=PRESETS)
def three(request: pytest.FixtureRequest, official_image: Callable[..., Any]) -> SimpleNamespace:
    """The official predictor, ours, and ours in float64; one picture is set."""
    short, version = request.param
    theirs = official_image(short, version, SIDE)
    from sam2.sam2_image_predictor import SAM2ImagePredictor as Official

    state = theirs.state_dict()
    models = [
        build_sam2(None, state, "cpu", image_size=SIDE, dtype=dtype)
        for dtype in (torch.float32, torch.float64)
    ]
    official = Official(theirs)
    official._bb_feat_sizes = [
        (SIDE // 4, SIDE // 4),
        (SIDE // 8, SIDE // 8),
        (SIDE // 16, SIDE // 16),
    ]
    found = SimpleNamespace(
        official=official, mine=SAM2ImagePredictor(models[0]), exact=SAM2ImagePredictor(models[1])
    )
    for predictor in vars(found).values():
        predictor.set_image(PHOTOGRAPH)
    return found


def test_features(three: SimpleNamespace, twice: Callable[..., None]) -> None:
    parts = [
        (p._features["image_embed"], *p._features["high_res_feats"]) for p in vars(three).values()
    ]
    for name, theirs, mine, exact in zip(("low", "high", "mid"), *parts, strict=True):
        assert mine.shape == theirs.shape
        assert mine.dtype == theirs.dtype
        twice(name, mine, theirs, exact)


@pytest.mark.filterwarnings("ignore:a point or box lies outside")
@pytest.mark.parametrize("return_logits", [True, False])
def test_predict(three: SimpleNamespace, twice: Callable[..., None], return_logits: bool) -> None:
    pooled: list[list[torch.Tensor]] = [[], [], []]
    for name, kwargs in PROMPTS.items():
        results = [
            p.predict(**arguments(kwargs), return_logits=return_logits)
            for p in vars(three).values()
        ]
        for theirs, mine in zip(results[0], results[1], strict=True):
            assert (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype), name
        if return_logits:
            for i in range(3):
                pooled[i].append(
                    torch.cat([torch.from_numpy(part).double().flatten() for part in results[i]])
                )
        else:
            union = (results[0][0] + results[1][0] > 0).sum()
            assert (results[0][0] * results[1][0]).sum() >= 0.999 * union, name
    if return_logits:
        theirs, mine, exact = (torch.cat(p) for p in pooled)
        twice("masks, IoU and low-resolution logits of all prompts", mine, theirs, exact)


def test_low_level_predict(three: SimpleNamespace) -> None:
    """`_prep_prompts` and `_predict` take and give the same tensors."""
    for kwargs in (PROMPTS["box and clicks"], PROMPTS["boxes"], PROMPTS["click and mask"]):
        given = [
            arguments(kwargs).get(k) for k in ("point_coords", "point_labels", "box", "mask_input")
        ]
        prepared = [p._prep_prompts(*given, True) for p in (three.official, three.mine)]
        for theirs, mine in zip(*prepared, strict=True):
            assert (theirs is None) == (mine is None)
            if theirs is not None:
                assert torch.equal(theirs, mine)
                assert theirs.dtype == mine.dtype
        mask, coords, labels, boxes = prepared[0]
        results = [
            p._predict(coords, labels, boxes, mask, True) for p in (three.official, three.mine)
        ]
        assert [(r.shape, r.dtype) for r in results[0]] == [(r.shape, r.dtype) for r in results[1]]


def test_predict_batch(three: SimpleNamespace, twice: Callable[..., None]) -> None:
    """Images of several sizes, prompts of several lengths and none in common."""
    images = [picture(1), picture(2, 120, 90), picture(3, 64, 64)]
    coords = [np.array([[50, 60]]), np.array([[30, 40], [5, 6]]), np.array([[[9, 9]], [[20, 30]]])]
    labels = [np.array([1]), np.array([1, 0]), np.array([[1], [1]])]
    pooled: list[torch.Tensor] = []
    before = {name: (p._features, p._orig_hw) for name, p in vars(three).items()}
    for name, predictor in vars(three).items():
        predictor.set_image_batch(images)
        outputs = predictor.predict_batch(coords, labels, return_logits=True)
        pooled.append(
            torch.cat([torch.from_numpy(a).double().flatten() for part in outputs for a in part])
        )
        predictor._features, predictor._orig_hw = before[name]
        predictor._is_batch = False
    theirs, mine, exact = pooled
    twice("batch", mine, theirs, exact)


RECORDS: dict[str, dict[str, Any]] = {
    "grid": dict(),
    "single mask, COCO": dict(multimask_output=False, output_mode="coco_rle"),
    "refined": dict(use_m2m=True, output_mode="uncompressed_rle"),
    "crops": dict(crop_n_layers=1, crop_n_points_downscale_factor=2, crop_nms_thresh=1.0),
    "duplicates dropped": dict(box_nms_thresh=0.9),
}


@pytest.mark.parametrize("name", RECORDS)
def test_records(three: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The same records in the same order, but for pixels whose logit is zero to rounding."""
    import sam2.automatic_mask_generator as official

    # CPU builds of torchvision may lack it.
    monkeypatch.setattr(official, "batched_nms", batched_nms)
    options = dict(
        points_per_side=4,
        points_per_batch=5,
        pred_iou_thresh=0.01,
        stability_score_thresh=0.01,
        box_nms_thresh=1.0,
    )
    options |= dict(stability_score_offset=0.05, mask_threshold=_median(three)) | RECORDS[name]
    reference = official.SAM2AutomaticMaskGenerator(three.official.model, **options)
    reference.predictor._bb_feat_sizes = three.official._bb_feat_sizes
    theirs, mine = (
        reference.generate(picture()),
        SAM2AutomaticMaskGenerator(three.mine.model, **options).generate(picture()),
    )
    assert len(mine) == len(theirs) > 0
    assert len(mine) > 10 or name in ("duplicates dropped", "single mask, COCO")
    for a, b in zip(_sorted(theirs), _sorted(mine), strict=True):
        assert list(a) == list(b)
        assert a["point_coords"] == b["point_coords"]
        assert a["crop_box"] == b["crop_box"]
        assert b["predicted_iou"] == pytest.approx(a["predicted_iou"])
        assert type(a["segmentation"]) is type(b["segmentation"])
        first, second = _mask(a["segmentation"]), _mask(b["segmentation"])
        assert (first & second).sum() >= 0.999 * (first | second).sum()


def _mask(segmentation: Any) -> np.ndarray:
    return decode_rle(segmentation) if isinstance(segmentation, dict) else segmentation


def _median(three: SimpleNamespace) -> float:
    """A threshold that cuts random masks in two."""
    three.official.set_image(picture())
    return float(
        np.median(
            three.official.predict(np.array([[150, 100]]), np.array([1]), return_logits=True)[0]
        )
    )


def _sorted(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By click and quality: equal scores to rounding may be ordered either way."""
    return sorted(
        records,
        key=lambda r: (r["crop_box"], r["point_coords"], round(r["predicted_iou"], 4), r["area"]),
    )
