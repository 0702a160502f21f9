"""Automatic masks: records, options, helper functions, and fixed defects of the official code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sam2_fast.image.automatic as module
from sam2_fast.compat.utils import amg
from sam2_fast.config import IMAGE_POSTPROCESSING, Options, Sam2Config
from sam2_fast.image import cleanup
from sam2_fast.image.automatic import SAM2AutomaticMaskGenerator
from sam2_fast.io.rle import decode_rle
from sam2_fast.official.base import SAM2Base
from sam2_fast.ops.nms import nms

SMALL = Sam2Config(
    embed_dim=16,
    stages=(1, 1, 2, 1),
    global_blocks=(3,),
    image_size=64,
    memory_layers=1,
    memory_ffn_dim=32,
    decoder_mlp_dim=32,
)
ALL: dict[str, Any] = {
    "points_per_side": 3,
    "pred_iou_thresh": 0.0,
    "stability_score_thresh": 0.0,
    "box_nms_thresh": 1.0,
}


@pytest.fixture(scope="module")
def model() -> SAM2Base:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        random_model = SAM2Base(SMALL, Options(**IMAGE_POSTPROCESSING)).eval()
        for parameter in random_model.parameters():
            if parameter.numel() > 1 and parameter.std() < 1e-5:
                parameter.add_(torch.randn(parameter.shape) * 0.2)
    return random_model


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)


def same(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> bool:
    return len(first) == len(second) and all(
        all(np.array_equal(a[k], b[k]) if k == "segmentation" else a[k] == b[k] for k in a)
        for a, b in zip(first, second, strict=True)
    )


KEYS = ["segmentation", "area", "bbox", "predicted_iou"]
KEYS += ["point_coords", "stability_score", "crop_box"]


def test_records_have_the_official_keys_and_consistent_values(
    model: SAM2Base, image: np.ndarray
) -> None:
    records = SAM2AutomaticMaskGenerator(model, **ALL).generate(image)
    assert len(records) > 9
    for r in records:
        assert list(r) == KEYS
        assert r["segmentation"].shape == (50, 70)
        assert r["segmentation"].dtype == bool
        assert r["area"] == r["segmentation"].sum()
        assert isinstance(r["area"], int)
        assert isinstance(r["predicted_iou"], float)
        assert r["crop_box"] == [0.0, 0.0, 70.0, 50.0]
        y, x = np.nonzero(r["segmentation"])
        if r["area"]:
            assert r["bbox"] == [x.min(), y.min(), x.max() - x.min(), y.max() - y.min()]
    scores = [r["predicted_iou"] for r in records]
    assert scores == sorted(scores, reverse=True)


def test_output_modes_contain_the_same_masks(model: SAM2Base, image: np.ndarray) -> None:
    masks, plain, coco = (
        SAM2AutomaticMaskGenerator(model, **ALL, output_mode=mode).generate(image)
        for mode in ("binary_mask", "uncompressed_rle", "coco_rle")
    )
    for a, b, c in zip(masks, plain, coco, strict=True):
        assert isinstance(b["segmentation"]["counts"], list)
        assert isinstance(c["segmentation"]["counts"], str)
        assert np.array_equal(a["segmentation"], decode_rle(b["segmentation"]))
        assert np.array_equal(a["segmentation"], decode_rle(c["segmentation"]))
        pycocotools = pytest.importorskip("pycocotools.mask")
        assert np.array_equal(a["segmentation"], pycocotools.decode(c["segmentation"]).astype(bool))


def test_no_mask_gives_an_empty_list(model: SAM2Base) -> None:
    """The official code raises IndexError or KeyError if a crop has no mask."""
    blank = np.zeros((40, 40, 3), np.uint8)
    for options in (
        {},
        {"crop_n_layers": 1},
        {"min_mask_region_area": 5, "crop_n_layers": 1},
        {"use_m2m": True},
    ):
        generator = SAM2AutomaticMaskGenerator(
            model, points_per_side=2, pred_iou_thresh=2.0, **options
        )
        assert generator.generate(blank) == []


@pytest.mark.parametrize("kind", ["grey", "pillow", "path", "tensor", "float"])
def test_images_of_every_kind_give_the_same_records(
    model: SAM2Base, image: np.ndarray, kind: str, tmp_path: Path
) -> None:
    grey = np.repeat(image[..., :1], 3, axis=2)
    Image.fromarray(grey).save(tmp_path / "image.png")
    images = {
        "grey": grey[..., 0],
        "pillow": Image.fromarray(grey[..., 0]),
        "path": tmp_path / "image.png",
        "tensor": torch.from_numpy(grey).permute(2, 0, 1),
        "float": grey.astype(np.float32) / np.float32(255),
    }
    generator = SAM2AutomaticMaskGenerator(model, **ALL)
    assert same(generator.generate(grey), generator.generate(images[kind]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"points_per_batch": 0}, "points_per_batch: expected an integer of 1 or more, got 0"),
        ({"points_per_side": 0}, "points_per_side"),
        ({"points_per_side": None}, "exactly one"),
        ({"point_grids": [np.zeros((1, 2))]}, "exactly one"),
        (
            {"points_per_side": None, "point_grids": [np.zeros((1, 2))], "crop_n_layers": 1},
            "expected 2 arrays",
        ),
        ({"points_per_side": None, "point_grids": [np.zeros((1, 3))]}, "point_grids"),
        ({"output_mode": "png"}, "output_mode: expected one of"),
        ({"crop_n_layers": -1}, "crop_n_layers"),
        (
            {"points_per_side": 2, "crop_n_layers": 2, "crop_n_points_downscale_factor": 2},
            "leaves no point in crop layer 2",
        ),
        ({"crop_overlap_ratio": 1.5}, "crop_overlap_ratio"),
        ({"min_mask_region_area": -1}, "min_mask_region_area"),
        ({"min_mask_region_area_at": "high_res"}, "min_mask_region_area_at: expected one of"),
    ],
)
def test_invalid_options_are_refused(
    model: SAM2Base, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        SAM2AutomaticMaskGenerator(model, **options)


def test_records_do_not_depend_on_the_elements_per_call(
    model: SAM2Base, image: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = SAM2AutomaticMaskGenerator(model, **ALL, points_per_batch=9).generate(image)
    monkeypatch.setattr(cleanup, "ELEMENTS_PER_CALL", 1)
    records = SAM2AutomaticMaskGenerator(model, **ALL, points_per_batch=9).generate(image)
    assert same(expected, records)


def test_a_batch_of_images_gives_the_records_of_each_image(
    model: SAM2Base, image: np.ndarray
) -> None:
    generator = SAM2AutomaticMaskGenerator(model, **ALL, crop_n_layers=1, crop_nms_thresh=1.0)
    images = [image, image[:30], image[:, :33]]
    batch = generator.generate_batch(images, images_per_batch=2)
    assert [len(records) for records in batch] == [len(generator.generate(i)) for i in images]
    assert generator.generate_batch([]) == []
    assert not generator.predictor._is_image_set


def test_masks_of_crops_are_within_their_crop(model: SAM2Base, image: np.ndarray) -> None:
    """The click of a mask is in the crop, too."""
    generator = SAM2AutomaticMaskGenerator(
        model, **ALL, crop_n_layers=1, crop_nms_thresh=1.0, mask_threshold=0.3
    )
    for r in generator.generate(image):
        x, y, w, h = r["crop_box"]
        elsewhere = np.ones((50, 70), bool)
        elsewhere[int(y) : int(y + h), int(x) : int(x + w)] = False
        assert not (r["segmentation"] & elsewhere).any()
        assert x <= r["point_coords"][0][0] <= x + w
        assert y <= r["point_coords"][0][1] <= y + h


def test_small_regions_are_measured_at_image_resolution(model: SAM2Base, image: np.ndarray) -> None:
    """The official code measures them in low-resolution logits, which remains an option."""
    cv2 = pytest.importorskip("cv2")
    for r in SAM2AutomaticMaskGenerator(model, **ALL, min_mask_region_area=12).generate(image):
        for mask in (r["segmentation"], ~r["segmentation"]):
            stats = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)[2]
            areas = stats[1:, -1]
            assert len(areas) <= 1 or areas.min() >= 12
    low = SAM2AutomaticMaskGenerator(
        model, **ALL, min_mask_region_area=12, min_mask_region_area_at="low_res"
    )
    assert low.predictor._transforms.max_hole_area == 12
    assert not same(low.generate(image), SAM2AutomaticMaskGenerator(model, **ALL).generate(image))


def test_stability_of_wide_images_is_exact() -> None:
    """The official code sums 40,000 pixels in int16."""
    logits = torch.full((1, 2, 40_000), 5.0)
    logits[0, 0, :10_000] = 0.0
    assert amg.calculate_stability_score(logits, 0.0, 1.0).item() == pytest.approx(70_000 / 80_000)


def test_refinement_returns_logits_at_image_size(model: SAM2Base, image: np.ndarray) -> None:
    generator = SAM2AutomaticMaskGenerator(model, **ALL, use_m2m=True)
    generator.predictor.set_image(image)
    points = torch.rand(5, 2) * 64
    labels = torch.ones(5, dtype=torch.int32)
    masks, iou = generator.refine_with_m2m(points, labels, torch.zeros(5, 16, 16), 2)
    assert masks.shape == (5, 1, 50, 70)
    assert iou.shape == (5, 1)


def official_small_regions(mask: np.ndarray, area: float, mode: str) -> tuple[np.ndarray, bool]:
    """The official `remove_small_regions`, with OpenCV.

    Small holes are filled and small islands are removed; if all islands are small, the largest one
    is not removed.
    """
    cv2 = pytest.importorskip("cv2")
    side = ~mask if mode == "holes" else mask
    _, regions, stats, _ = cv2.connectedComponentsWithStats(side.astype(np.uint8), connectivity=8)
    sizes = {i + 1: s for i, s in enumerate(stats[1:, -1])}
    small = [i for i, s in sizes.items() if s < area]
    if not small:
        return mask, False
    if mode == "holes":
        return mask | np.isin(regions, small), True
    large = [i for i in sizes if i not in small] or [max(sizes, key=lambda i: sizes[i])]
    return np.isin(regions, large), True


@pytest.mark.parametrize("mode", ["holes", "islands"])
@pytest.mark.parametrize("density", [0.02, 0.3, 0.6, 0.97])
def test_small_regions_are_removed_as_in_the_official_code(mode: str, density: float) -> None:
    generator = np.random.default_rng(1)
    for area in (0, 1, 2.5, 6, 400):
        blob = np.zeros((20, 31), bool)
        blob[3:6, 4:9] = True  # so large that no two islands are the largest
        mask = (generator.random((20, 31)) < density) | blob
        cleaned, changed = amg.remove_small_regions(mask, area, mode)
        expected, expected_changed = official_small_regions(mask, area, mode)
        assert changed == expected_changed
        assert np.array_equal(cleaned, expected)
    with pytest.raises(ValueError, match="mode"):
        amg.remove_small_regions(blob, 3, "specks")


def test_the_first_of_equally_large_islands_is_not_removed() -> None:
    mask = np.zeros((9, 9), bool)
    mask[1, 6:8] = mask[7, 1:3] = mask[4, 4] = True
    cleaned, changed = amg.remove_small_regions(mask, 5, "islands")
    assert changed
    assert cleaned.nonzero()[0].tolist() == [1, 1]


def test_postprocessing_prefers_masks_that_it_does_not_change() -> None:
    clean = torch.zeros(1, 20, 20, dtype=torch.bool)
    clean[0, 2:12, 2:12] = True
    specked = clean.clone()
    specked[0, 18, 18] = True
    rles = amg.mask_to_rle_pytorch(torch.cat([specked, clean]))
    data = amg.MaskData(
        rles=rles,
        boxes=amg.batched_mask_to_box(torch.cat([specked, clean])),
        iou_preds=torch.tensor([0.9, 0.8]),
    )
    result = SAM2AutomaticMaskGenerator.postprocess_small_regions(data, 3, 0.7)
    assert result["iou_preds"].tolist() == [pytest.approx(0.8)]
    only_specked = amg.MaskData(
        rles=amg.mask_to_rle_pytorch(specked), boxes=amg.batched_mask_to_box(specked)
    )
    result = SAM2AutomaticMaskGenerator.postprocess_small_regions(only_specked, 3, 0.7)
    assert result["boxes"].tolist() == [[2, 2, 11, 11]]
    assert np.array_equal(amg.rle_to_mask(result["rles"][0]), clean[0].numpy())


def test_mask_data_can_be_filtered_concatenated_and_converted() -> None:
    data = amg.MaskData(a=torch.arange(3), b=np.arange(3), c=["x", "y", "z"])
    data.filter(torch.tensor([True, False, True]))
    assert (data["a"].tolist(), data["b"].tolist(), data["c"]) == ([0, 2], [0, 2], ["x", "z"])
    data.filter(torch.tensor([1, 0]))
    assert (data["a"].tolist(), data["b"].tolist(), data["c"]) == ([2, 0], [2, 0], ["z", "x"])
    data.cat(amg.MaskData(a=torch.tensor([7]), b=np.array([8]), c=["w"], d=[1]))
    assert (data["a"].tolist(), data["c"], data["d"]) == ([2, 0, 7], ["z", "x", "w"], [1])
    data.to_numpy()
    assert data["a"].dtype == np.float32
    del data["d"]
    assert "d" not in data
    with pytest.raises(TypeError, match="'e'"):
        data["e"] = 3


def test_batch_iterator_yields_batches_of_rows() -> None:
    assert [list(a) for (a,) in amg.batch_iterator(2, [1, 2, 3])] == [[1, 2], [3]]
    assert list(amg.batch_iterator(2, [])) == []
    with pytest.raises(ValueError, match="batch_size"):
        list(amg.batch_iterator(0, [1]))


@pytest.mark.parametrize(
    "options", [{}, {"use_m2m": True}, {"crop_n_layers": 1}, {"multimask_output": False}], ids=str
)
@pytest.mark.parametrize("clicks", [1000, 8], ids=["all clicks", "eight clicks"])
def test_filters_on_the_device_give_the_same_records(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], clicks: int
) -> None:
    with Image.open(Path(__file__).resolve().parents[1] / "examples" / "still.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    thresholds = {"pred_iou_thresh": 0.5, "stability_score_thresh": 0.8}
    generator = SAM2AutomaticMaskGenerator.from_pretrained(
        "nano",
        device="cpu",
        output_mode="uncompressed_rle",
        points_per_side=4,
        points_per_batch=4,
        **thresholds,
        **options,
    )
    masks_per_click = 3 if generator.multimask_output else 1
    crops = 5 if options.get("crop_n_layers") else 1
    expected = generator.generate(pixels)
    counts = []  # boxes in each call of nms
    monkeypatch.setattr(module, "_on_accelerator", lambda device: True)
    monkeypatch.setattr(module, "LOGITS_AT_ONCE", clicks * masks_per_click * 64 * 64)
    monkeypatch.setattr(module, "nms", lambda *a, **k: counts.append(len(a[0])) or nms(*a, **k))
    assert generator.generate(pixels) == expected and len(expected) > 4
    # The device filters masks only if the logits of all sixteen clicks of a crop fit.
    assert counts == ([] if clicks == 8 else [16 * masks_per_click] * crops)
