"""Images: our predictor against the official one with the same random weights.

Errors are measured against a float64 run of our model.
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
    "mask only": dict(mask_input="random"),
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
    """Smooth colours with disks on them."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    image = np.stack([x * 255 / width, y * 255 / height, (x + y) % 256], -1)
    for _ in range(5):
        cy = generator.integers(0, height)
        cx = generator.integers(0, width)
        radius = generator.integers(10, 60)
        disk = (y - cy) ** 2 + (x - cx) ** 2 < radius * radius
        image[disk] = generator.integers(0, 256, 3)
    return image.astype(np.uint8)


def arguments(prompt: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `predict`: lists as arrays, as the official code requires."""
    converted = {k: np.array(v) if isinstance(v, list) else v for k, v in prompt.items()}
    if "mask_input" in prompt:
        mask = np.random.default_rng(1).standard_normal((1, SIDE // 4, SIDE // 4))
        converted["mask_input"] = mask.astype(np.float32) * 5
    return converted


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
def predictors(
    request: pytest.FixtureRequest, official_image: Callable[..., Any]
) -> SimpleNamespace:
    """The official predictor, ours, and ours in float64 (`exact`), each with the same image set."""
    short, version = request.param
    official_model = official_image(short, version, SIDE)
    from sam2.sam2_image_predictor import SAM2ImagePredictor as OfficialPredictor

    official = OfficialPredictor(official_model)
    official._bb_feat_sizes = [(SIDE // stride, SIDE // stride) for stride in (4, 8, 16)]
    ours, exact = (
        SAM2ImagePredictor(
            build_sam2(None, official_model.state_dict(), "cpu", image_size=SIDE, dtype=dtype)
        )
        for dtype in (torch.float32, torch.float64)
    )
    for predictor in (official, ours, exact):
        predictor.set_image(PHOTOGRAPH)
    return SimpleNamespace(official=official, ours=ours, exact=exact)


def test_image_features_equal_the_official_ones(
    predictors: SimpleNamespace, assert_within_twice: Callable[..., None]
) -> None:
    parts = [
        (p._features["image_embed"], *p._features["high_res_feats"])
        for p in vars(predictors).values()
    ]
    for name, official, ours, exact in zip(("low", "high", "mid"), *parts, strict=True):
        assert ours.shape == official.shape
        assert ours.dtype == official.dtype
        assert_within_twice(name, ours, official, exact)


@pytest.mark.filterwarnings("ignore:a point or box lies outside")
@pytest.mark.parametrize("return_logits", [True, False])
def test_predictions_equal_the_official_ones(
    predictors: SimpleNamespace, assert_within_twice: Callable[..., None], return_logits: bool
) -> None:
    pooled: list[list[torch.Tensor]] = [[], [], []]
    for name, prompt in PROMPTS.items():
        results = [
            p.predict(**arguments(prompt), return_logits=return_logits)
            for p in vars(predictors).values()
        ]
        for official, ours in zip(results[0], results[1], strict=True):
            assert (ours.shape, ours.dtype) == (official.shape, official.dtype), name
        if return_logits:
            for i in range(3):
                pooled[i].append(
                    torch.cat([torch.from_numpy(part).double().flatten() for part in results[i]])
                )
        else:
            union = (results[0][0] + results[1][0] > 0).sum()
            assert (results[0][0] * results[1][0]).sum() >= 0.999 * union, name
    if return_logits:
        official, ours, exact = (torch.cat(p) for p in pooled)
        name = "masks, IoU and low-resolution logits of all prompts"
        assert_within_twice(name, ours, official, exact)


def test_low_level_methods_accept_and_return_the_official_tensors(
    predictors: SimpleNamespace,
) -> None:
    """`_prep_prompts` returns equal tensors, `_predict` tensors of equal shapes and dtypes."""
    both = (predictors.official, predictors.ours)
    for prompt in (PROMPTS["box and clicks"], PROMPTS["boxes"], PROMPTS["click and mask"]):
        names = ("point_coords", "point_labels", "box", "mask_input")
        inputs = [arguments(prompt).get(name) for name in names]
        prepared = [p._prep_prompts(*inputs, True) for p in both]
        for official, ours in zip(*prepared, strict=True):
            assert (official is None) == (ours is None)
            if official is not None:
                assert torch.equal(official, ours)
                assert official.dtype == ours.dtype
        mask, coords, labels, boxes = prepared[0]
        results = [p._predict(coords, labels, boxes, mask, True) for p in both]
        assert [(r.shape, r.dtype) for r in results[0]] == [(r.shape, r.dtype) for r in results[1]]


def test_batched_predictions_equal_the_official_ones(
    predictors: SimpleNamespace, assert_within_twice: Callable[..., None]
) -> None:
    """The images have different sizes, the prompts different lengths."""
    images = [picture(1), picture(2, 120, 90), picture(3, 64, 64)]
    coords = [np.array([[50, 60]]), np.array([[30, 40], [5, 6]]), np.array([[[9, 9]], [[20, 30]]])]
    labels = [np.array([1]), np.array([1, 0]), np.array([[1], [1]])]
    pooled: list[torch.Tensor] = []
    before = {name: (p._features, p._orig_hw) for name, p in vars(predictors).items()}
    for name, predictor in vars(predictors).items():
        predictor.set_image_batch(images)
        outputs = predictor.predict_batch(coords, labels, return_logits=True)
        flattened = [torch.from_numpy(a).double().flatten() for part in outputs for a in part]
        pooled.append(torch.cat(flattened))
        predictor._features, predictor._orig_hw = before[name]
        predictor._is_batch = False
    official, ours, exact = pooled
    assert_within_twice("batch", ours, official, exact)


GENERATORS: dict[str, dict[str, Any]] = {
    "grid": dict(),
    "single mask, COCO": dict(multimask_output=False, output_mode="coco_rle"),
    "refined": dict(use_m2m=True, output_mode="uncompressed_rle"),
    "crops": dict(crop_n_layers=1, crop_n_points_downscale_factor=2, crop_nms_thresh=1.0),
    "duplicates dropped": dict(box_nms_thresh=0.9),
}


@pytest.mark.parametrize("name", GENERATORS)
def test_automatic_masks_equal_the_official_ones(
    predictors: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Equal except for pixels whose logit is at the threshold up to rounding."""
    import sam2.automatic_mask_generator as official

    # CPU builds of torchvision may lack the operator.
    monkeypatch.setattr(official, "batched_nms", batched_nms)
    options = dict(points_per_side=4, points_per_batch=5, pred_iou_thresh=0.01, box_nms_thresh=1.0)
    options |= dict(stability_score_thresh=0.01, stability_score_offset=0.05)
    options |= dict(mask_threshold=_median_logit(predictors)) | GENERATORS[name]
    reference = official.SAM2AutomaticMaskGenerator(predictors.official.model, **options)
    reference.predictor._bb_feat_sizes = predictors.official._bb_feat_sizes
    expected = reference.generate(picture())
    ours = SAM2AutomaticMaskGenerator(predictors.ours.model, **options).generate(picture())
    assert len(ours) == len(expected) > 0
    assert len(ours) > 10 or name in ("duplicates dropped", "single mask, COCO")
    for a, b in zip(_sorted(expected), _sorted(ours), strict=True):
        assert list(a) == list(b)
        assert a["point_coords"] == b["point_coords"]
        assert a["crop_box"] == b["crop_box"]
        assert b["predicted_iou"] == pytest.approx(a["predicted_iou"])
        assert type(a["segmentation"]) is type(b["segmentation"])
        expected_mask = _mask(a["segmentation"])
        our_mask = _mask(b["segmentation"])
        assert (expected_mask & our_mask).sum() >= 0.999 * (expected_mask | our_mask).sum()


def _mask(segmentation: Any) -> np.ndarray:
    return decode_rle(segmentation) if isinstance(segmentation, dict) else segmentation


def _median_logit(predictors: SimpleNamespace) -> float:
    """The median logit of the masks of a click: a threshold that random masks cross."""
    predictors.official.set_image(picture())
    point = (np.array([[150, 100]]), np.array([1]))
    return float(np.median(predictors.official.predict(*point, return_logits=True)[0]))


def _sorted(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records by click and quality; scores that are equal up to rounding may come in any order."""
    return sorted(
        records,
        key=lambda r: (r["crop_box"], r["point_coords"], round(r["predicted_iou"], 4), r["area"]),
    )
