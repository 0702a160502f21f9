"""`SAM2ImagePredictor` on a small random model: shapes, refused input and equal results."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sam2_fast.config import IMAGE_POSTPROCESSING, Options, Sam2Config
from sam2_fast.image import decoding
from sam2_fast.image.predictor import SAM2ImagePredictor
from sam2_fast.image.transforms import SAM2Transforms
from sam2_fast.official.base import SAM2Base

SMALL = Sam2Config(
    embed_dim=16,
    stages=(1, 1, 2, 1),
    global_blocks=(3,),
    image_size=64,
    memory_layers=1,
    memory_ffn_dim=32,
    decoder_mlp_dim=32,
)
SIDE = 16  # height and width of low-resolution masks


def small_model(dtype: torch.dtype = torch.float32) -> SAM2Base:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = SAM2Base(SMALL, Options(**IMAGE_POSTPROCESSING)).eval()
        for parameter in model.parameters():
            if parameter.numel() > 1 and parameter.std() < 1e-5:
                parameter.add_(torch.randn(parameter.shape) * 0.2)
    return model.to(dtype)


def picture(seed: int = 0, height: int = 40, width: int = 60) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def predictor() -> SAM2ImagePredictor:
    image_predictor = SAM2ImagePredictor(small_model())
    image_predictor.set_image(picture())
    return image_predictor


CLICK: dict[str, Any] = {"point_coords": np.array([[20, 30]]), "point_labels": np.array([1])}


def test_shapes_and_dtypes(predictor: SAM2ImagePredictor) -> None:
    for prompt, prompts in (
        (CLICK, ()),
        ({"box": [[1, 2, 30, 31], [5, 6, 7, 8]]}, (2,)),
        ({"box": np.zeros((0, 4))}, (0,)),
    ):
        for multimask, count in ((True, 3), (False, 1)):
            masks, iou, low = predictor.predict(**prompt, multimask_output=multimask)
            assert masks.shape == (*prompts, count, 40, 60)
            assert iou.shape == (*prompts, count)
            assert low.shape == (*prompts, count, SIDE, SIDE)
            assert {a.dtype for a in (masks, iou, low)} == {np.dtype(np.float32)}
            assert set(np.unique(masks)) <= {0.0, 1.0}
            assert np.abs(low).max(initial=0) <= 32


def test_official_attributes(predictor: SAM2ImagePredictor) -> None:
    assert predictor._bb_feat_sizes == [(16, 16), (8, 8), (4, 4)]
    assert predictor._orig_hw == [(40, 60)]
    assert predictor._is_image_set
    assert not predictor._is_batch
    assert isinstance(predictor._transforms, SAM2Transforms)
    assert predictor.get_image_embedding().shape == (1, 256, 4, 4)
    shapes = [tuple(x.shape) for x in predictor._features["high_res_feats"]]
    assert shapes == [(1, 32, 16, 16), (1, 64, 8, 8)]
    assert predictor.device == torch.device("cpu")


@pytest.mark.parametrize(
    "kind", ["pillow", "tensor", "path", "grey", "rgba", "negative strides", "float"]
)
def test_images_of_every_kind_give_the_same_masks(kind: str, tmp_path: Path) -> None:
    image = picture()
    if kind == "grey":
        image = np.repeat(image[..., :1], 3, axis=2)
    Image.fromarray(image).save(tmp_path / "image.png")
    images = {
        "pillow": Image.fromarray(image),
        "tensor": torch.from_numpy(image).permute(2, 0, 1),
        "path": tmp_path / "image.png",
        "grey": image[..., 0],
        "rgba": np.dstack([image, image[..., 0]]),
        "negative strides": np.ascontiguousarray(image[:, ::-1])[:, ::-1],
        "float": image.astype(np.float64) / 255,
    }
    predictor = SAM2ImagePredictor(small_model())
    predictor.set_image(image)
    expected = predictor.predict(**CLICK, return_logits=True)[0]
    predictor.set_image(images[kind])
    assert np.allclose(predictor.predict(**CLICK, return_logits=True)[0], expected, atol=1e-5)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((0, 4, 3), np.uint8),
        np.full((4, 4, 3), 200.0),
        np.full((4, 4, 3), np.nan),
        np.zeros((4, 4, 5), np.uint8),
        "absent.png",
        3,
    ],
    ids=["no pixels", "0..255 floats", "NaN", "5 channels", "no file", "an int"],
)
def test_a_refused_image_keeps_the_previous_one(predictor: SAM2ImagePredictor, image: Any) -> None:
    before = predictor.predict(**CLICK, return_logits=True)[0]
    with pytest.raises((ValueError, TypeError, FileNotFoundError)) as error:
        predictor.set_image(image)
    assert "\n" not in str(error.value)
    with pytest.raises((ValueError, TypeError, FileNotFoundError)):
        predictor.set_image_batch([picture(), image])
    assert not predictor._is_batch
    assert np.array_equal(before, predictor.predict(**CLICK, return_logits=True)[0])


MASK = np.zeros((1, SIDE, SIDE), np.float32)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({}, "no prompt"),
        ({"point_coords": np.zeros((0, 2)), "point_labels": np.zeros(0)}, "no prompt"),
        ({"point_labels": [1]}, "point_coords: expected"),
        ({"point_coords": [[1, 2]]}, "point_labels: expected"),
        ({"point_coords": [[1, np.nan]], "point_labels": [1]}, "finite"),
        ({"point_coords": [[1, 2, 3]], "point_labels": [1]}, r"shape \(P, 2\)"),
        ({"point_coords": [[1, 2]], "point_labels": [1, 0]}, "one per point"),
        ({"point_coords": [[1, 2]], "point_labels": [2]}, "got 2"),
        ({"point_coords": "ab", "point_labels": [1]}, "expected numbers"),
        ({"box": [9, 9, 3, 20]}, "swap the corners"),
        ({"box": [1, 2, 3]}, r"shape \(4,\)"),
        ({"box": [1, 2, 3, np.inf]}, "finite"),
        (
            {"box": [[1, 2, 3, 4], [1, 2, 3, 4]], "point_coords": [[1, 2]], "point_labels": [1]},
            "2 boxes and 1 sets of points",
        ),
        (
            {"mask_input": np.zeros((100, 100))},
            r"expected low-resolution logits of shape \(1, 16, 16\)",
        ),
        ({"mask_input": np.zeros((3, SIDE, SIDE))}, r"low_res\[i\]\[None\]"),
        ({"mask_input": np.full((1, SIDE, SIDE), np.nan)}, "finite"),
        (
            {"box": np.ones((3, 4)), "mask_input": np.zeros((2, 1, SIDE, SIDE))},
            "one for each of 3 prompts",
        ),
    ],
)
def test_invalid_prompts_are_refused(
    predictor: SAM2ImagePredictor, prompt: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        predictor.predict(**prompt)


def test_predicting_without_an_image_is_an_error(predictor: SAM2ImagePredictor) -> None:
    predictor.reset_predictor()
    for call in (
        lambda: predictor.predict(**CLICK),
        lambda: predictor._predict(None, None),
        lambda: predictor._prep_prompts(*[None] * 4, True),
    ):
        with pytest.raises(
            RuntimeError,
            match=r"^An image must be set with \.set_image\(\.\.\.\) before mask prediction\.$",
        ):
            call()
    with pytest.raises(
        RuntimeError,
        match=r"^An image must be set with \.set_image\(\.\.\.\) to generate an embedding\.$",
    ):
        predictor.get_image_embedding()
    with pytest.raises(RuntimeError, match="set_image_batch"):
        predictor.predict_batch([None])


def test_a_model_of_another_type_is_refused() -> None:
    with pytest.raises(TypeError, match="build_sam2"):
        SAM2ImagePredictor(torch.nn.Linear(1, 1))


def test_prompts_of_every_type_give_the_same_masks(predictor: SAM2ImagePredictor) -> None:
    expected = predictor.predict(**CLICK, box=np.array([2.0, 3, 40, 30]), return_logits=True)[0]
    coords = torch.tensor([[20, 99], [30, 99]]).T[:1]  # int64, not contiguous
    leaf = torch.tensor([2.0, 3, 40, 30], requires_grad=True)
    for box in (leaf, [2, 3, 40, 30], np.array([[2, 3, 40, 30]]), np.array([[2, 3], [40, 30]])):
        logits = predictor.predict(
            point_coords=coords, point_labels=torch.tensor([True]), box=box, return_logits=True
        )[0]
        assert np.array_equal(expected, logits)
    assert torch.equal(coords, torch.tensor([[20, 30]]))
    assert leaf.grad is None


def test_points_outside_the_image_warn_once_and_are_used(predictor: SAM2ImagePredictor) -> None:
    def predict(points: list[list[int]], box: list[int]) -> np.ndarray:
        return predictor.predict(points, [1, 1], box=box, return_logits=True)[0]

    with pytest.warns(UserWarning, match="outside the 60 x 40 image") as record:
        logits = predict([[99, -3], [200, 0]], [0, 0, 61, 40])
    assert len(record) == 1
    assert record[0].filename == __file__
    clamped = predict([[59, 0], [59, 0]], [0, 0, 60, 40])
    assert not np.array_equal(logits, clamped)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predictor.predict(point_coords=[[0, 0], [60, 40], [-9, -9]], point_labels=[1, 1, -1])


def test_a_box_is_two_points_before_the_clicks(predictor: SAM2ImagePredictor) -> None:
    coords = torch.tensor([[[2.0, 3.0], [40.0, 30.0], [20.0, 30.0]]])
    labels = torch.tensor([[2, 3, 1]], dtype=torch.int32)
    scaled = predictor._transforms.transform_coords(coords, normalize=True, orig_hw=(40, 60))
    low = predictor._predict(scaled, labels)[2]
    assert np.array_equal(low[0].numpy(), predictor.predict(**CLICK, box=[2, 3, 40, 30])[2])


def test_low_level_masks_are_bool_or_logits(predictor: SAM2ImagePredictor) -> None:
    _, coords, labels, boxes = predictor._prep_prompts(
        CLICK["point_coords"], CLICK["point_labels"], None, None, True
    )
    masks, iou, low = predictor._predict(coords, labels, boxes)
    logits = predictor._predict(coords, labels, return_logits=True)[0]
    assert masks.dtype == torch.bool
    assert torch.equal(masks, logits > 0)
    assert not any(x.requires_grad for x in (masks, iou, low, logits))


@pytest.mark.parametrize("rows", [1, 64])
def test_a_batch_errs_at_most_twice_as_much_as_its_images_alone(
    monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    """Prompts of any length are decoded in one call."""
    monkeypatch.setattr(decoding, "ROWS_PER_CALL", rows)
    images = [picture(i, 30 + 9 * i, 50) for i in range(4)]
    coords = [[[5, 6]], [[[7, 8]], [[9, 9]]], None, [[1, 2], [3, 4]]]
    labels = [[1], [[1], [0]], None, [1, 0]]
    boxes = [None, None, [1, 2, 20, 21], None]
    masks = [None, None, MASK + 3, MASK - 1]
    batched, single, exact = (
        SAM2ImagePredictor(small_model(d)) for d in (torch.float32, torch.float32, torch.float64)
    )
    batched.set_image_batch(images)
    results = batched.predict_batch(coords, labels, boxes, masks, return_logits=True)
    assert [len(part) for part in results] == [4, 4, 4]
    pools: list[list[np.ndarray]] = [[], [], []]
    for i, image in enumerate(images):
        prompt = (coords[i], labels[i], boxes[i], masks[i])
        pools[0] += [part[i] for part in results]
        for pool, predictor in zip(pools[1:], (single, exact), strict=True):
            predictor.set_image(image)
            pool += predictor.predict(*prompt, return_logits=True)
    assert [a.shape for a in pools[0]] == [a.shape for a in pools[1]]
    in_batch, alone, truth = (np.concatenate([a.ravel() for a in pool]) for pool in pools)
    assert np.abs(in_batch - truth).max() <= 2 * np.abs(alone - truth).max()


def test_prompts_of_different_lengths_are_decoded_in_one_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    predictor = SAM2ImagePredictor(small_model(torch.float32))
    predictor.set_image_batch([picture(i, 30, 50) for i in range(3)])
    calls = []
    original = predictor.model.decode
    monkeypatch.setattr(
        predictor.model,
        "decode",
        lambda *a: calls.append(len(a[2].labels)) or original(*a),
    )
    predictor.predict_batch(
        [[[5, 6]], [[7, 8], [9, 9]], None], [[1], [1, 0], None], [None, None, [1, 2, 20, 21]]
    )
    assert calls == [3]


def test_a_batch_needs_an_entry_per_image(predictor: SAM2ImagePredictor) -> None:
    predictor.set_image_batch([picture(), picture(1)])
    with pytest.raises(ValueError, match="box_batch: expected 2 entries"):
        predictor.predict_batch(box_batch=[[1, 2, 3, 4]])
    with pytest.raises(ValueError, match=r"image_list\[1\]"):
        predictor.set_image_batch([picture(), np.zeros((0, 3, 3), np.uint8)])
    with pytest.raises(ValueError, match="at least one image"):
        predictor.set_image_batch([])


def test_large_results_are_computed_in_parts(
    predictor: SAM2ImagePredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    boxes = np.array([[i, i, 30 + i, 30] for i in range(5)])
    expected = predictor.predict(box=boxes)[0]
    monkeypatch.setattr(decoding, "ELEMENTS_PER_CALL", 1)
    assert np.array_equal(expected, predictor.predict(box=boxes)[0])


def test_holes_and_specks_are_removed_from_masks_only(predictor: SAM2ImagePredictor) -> None:
    """Small components are removed from masks at image size, not from low-resolution logits."""
    raw_masks, _, raw_low = predictor.predict(**CLICK)
    predictor._transforms.max_hole_area = predictor._transforms.max_sprinkle_area = 30
    masks, _, low = predictor.predict(**CLICK)
    assert np.array_equal(low, raw_low)
    assert not np.array_equal(masks, raw_masks)


def test_autocast_and_inference_mode_are_applied() -> None:
    predictor = SAM2ImagePredictor(small_model())
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        predictor.set_image(picture())
        assert predictor._features["high_res_feats"][0].dtype == torch.bfloat16
        masks, iou, low = predictor.predict(**CLICK)
    assert {a.dtype for a in (masks, iou, low)} == {np.dtype(np.float32)}
    half = SAM2ImagePredictor(small_model(torch.bfloat16))
    half.set_image(picture())
    assert half.predict(**CLICK)[0].shape == (3, 40, 60)


def test_from_pretrained_accepts_a_path(tmp_path: Path) -> None:
    from sam2_fast.build_sam import build_sam2

    weights = build_sam2("tiny", device="cpu", image_size=64).state_dict()
    torch.save({"model": weights}, tmp_path / "tiny.pt")
    predictor = SAM2ImagePredictor.from_pretrained(
        str(tmp_path / "tiny.pt"), device="cpu", image_size=64, mask_threshold=0.5
    )
    assert predictor.mask_threshold == 0.5
    assert predictor.model.config.image_size == 64


def test_transforms_without_sizes() -> None:
    transforms = SAM2Transforms(64, 0.0)
    with pytest.raises(ValueError, match="orig_hw"):
        transforms.transform_coords(torch.zeros(1, 2), normalize=True)
    corners = transforms.transform_boxes(torch.tensor([[0.0, 0.0, 1.0, 0.5]]))
    assert corners.tolist() == [[[0.0, 0.0], [64.0, 32.0]]]
    assert transforms.forward_batch([picture(), picture(1, 9, 9)]).shape == (2, 3, 64, 64)
