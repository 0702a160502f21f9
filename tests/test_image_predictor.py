"""`SAM2ImagePredictor`: shapes, refusals and equalities on a small random model."""

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
SIDE = 16  # of low-resolution masks


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
    found = SAM2ImagePredictor(small_model())
    found.set_image(picture())
    return found


CLICK: dict[str, Any] = {"point_coords": np.array([[20, 30]]), "point_labels": np.array([1])}


def test_shapes_and_dtypes(predictor: SAM2ImagePredictor) -> None:
    for kwargs, lead in (
        (CLICK, ()),
        ({"box": [[1, 2, 30, 31], [5, 6, 7, 8]]}, (2,)),
        ({"box": np.zeros((0, 4))}, (0,)),
    ):
        for multimask, count in ((True, 3), (False, 1)):
            masks, iou, low = predictor.predict(**kwargs, multimask_output=multimask)
            assert masks.shape == (*lead, count, 40, 60)
            assert iou.shape == (*lead, count)
            assert low.shape == (*lead, count, SIDE, SIDE)
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
    assert [tuple(x.shape) for x in predictor._features["high_res_feats"]] == [
        (1, 32, 16, 16),
        (1, 64, 8, 8),
    ]
    assert predictor.device == torch.device("cpu")


@pytest.mark.parametrize(
    "given", ["pillow", "tensor", "path", "grey", "rgba", "negative strides", "float"]
)
def test_images_of_every_kind(given: str, tmp_path: Path) -> None:
    image = picture()
    if given == "grey":
        image = np.repeat(image[..., :1], 3, axis=2)
    Image.fromarray(image).save(tmp_path / "image.png")
    forms = {
        "pillow": Image.fromarray(image),
        "tensor": torch.from_numpy(image).permute(2, 0, 1),
        "path": tmp_path / "image.png",
        "grey": image[..., 0],
        "rgba": np.dstack([image, image[..., 0]]),
        "negative strides": np.ascontiguousarray(image[:, ::-1])[:, ::-1],
        "float": image.astype(np.float64) / 255,
    }
    first, second = SAM2ImagePredictor(small_model()), SAM2ImagePredictor(small_model())
    first.set_image(image)
    second.set_image(forms[given])
    assert np.allclose(
        first.predict(**CLICK, return_logits=True)[0],
        second.predict(**CLICK, return_logits=True)[0],
        atol=1e-5,
    )


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
    ("kwargs", "message"),
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
def test_prompts_without_meaning_are_refused(
    predictor: SAM2ImagePredictor, kwargs: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        predictor.predict(**kwargs)


def test_without_an_image(predictor: SAM2ImagePredictor) -> None:
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


def test_a_model_of_another_kind() -> None:
    with pytest.raises(TypeError, match="build_sam2"):
        SAM2ImagePredictor(torch.nn.Linear(1, 1))


def test_prompts_of_every_type_give_the_same_mask(predictor: SAM2ImagePredictor) -> None:
    expected = predictor.predict(**CLICK, box=np.array([2.0, 3, 40, 30]), return_logits=True)[0]
    coords = torch.tensor([[20, 99], [30, 99]]).T[:1]  # int64, not contiguous
    leaf = torch.tensor([2.0, 3, 40, 30], requires_grad=True)
    for box in (leaf, [2, 3, 40, 30], np.array([[2, 3, 40, 30]]), np.array([[2, 3], [40, 30]])):
        found = predictor.predict(
            point_coords=coords, point_labels=torch.tensor([True]), box=box, return_logits=True
        )[0]
        assert np.array_equal(expected, found)
    assert torch.equal(coords, torch.tensor([[20, 30]]))
    assert leaf.grad is None


def test_points_outside_warn_once_and_are_used(predictor: SAM2ImagePredictor) -> None:
    with pytest.warns(UserWarning, match="outside the 60 x 40 image") as caught:
        outside = predictor.predict(
            point_coords=[[99, -3], [200, 0]],
            point_labels=[1, 1],
            box=[0, 0, 61, 40],
            return_logits=True,
        )[0]
    assert len(caught) == 1
    assert caught[0].filename == __file__
    inside = predictor.predict(
        point_coords=[[59, 0], [59, 0]], point_labels=[1, 1], box=[0, 0, 60, 40], return_logits=True
    )[0]
    assert not np.array_equal(outside, inside)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predictor.predict(point_coords=[[0, 0], [60, 40], [-9, -9]], point_labels=[1, 1, -1])


def test_a_box_is_two_points_before_the_clicks(predictor: SAM2ImagePredictor) -> None:
    coords = torch.tensor([[[2.0, 3.0], [40.0, 30.0], [20.0, 30.0]]])
    labels = torch.tensor([[2, 3, 1]], dtype=torch.int32)
    placed = predictor._transforms.transform_coords(coords, normalize=True, orig_hw=(40, 60))
    low = predictor._predict(placed, labels)[2]
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


@pytest.mark.parametrize("together", [1, 64])
def test_a_batch_is_its_images(monkeypatch: pytest.MonkeyPatch, together: int) -> None:
    """Prompts of any length are decoded together; errors against float64 stay those of one call per
    image.
    """
    monkeypatch.setattr(decoding, "ROWS_PER_CALL", together)
    images = [picture(i, 30 + 9 * i, 50) for i in range(4)]
    coords = [[[5, 6]], [[[7, 8]], [[9, 9]]], None, [[1, 2], [3, 4]]]
    labels = [[1], [[1], [0]], None, [1, 0]]
    boxes, masks = [None, None, [1, 2, 20, 21], None], [None, None, MASK + 3, MASK - 1]
    batched, single, exact = (
        SAM2ImagePredictor(small_model(d)) for d in (torch.float32, torch.float32, torch.float64)
    )
    batched.set_image_batch(images)
    results = batched.predict_batch(coords, labels, boxes, masks, return_logits=True)
    assert [len(part) for part in results] == [4, 4, 4]
    pools: list[list[np.ndarray]] = [[], [], []]
    for i, image in enumerate(images):
        given = {
            "point_coords": coords[i],
            "point_labels": labels[i],
            "box": boxes[i],
            "mask_input": masks[i],
            "return_logits": True,
        }
        for predictor in (single, exact):
            predictor.set_image(image)
        for pool, arrays in zip(
            pools,
            ([part[i] for part in results], single.predict(**given), exact.predict(**given)),
            strict=True,
        ):
            pool += arrays
    assert [a.shape for a in pools[0]] == [a.shape for a in pools[1]]
    mine, one, truth = (np.concatenate([a.ravel() for a in pool]) for pool in pools)
    assert np.abs(mine - truth).max() <= 2 * np.abs(one - truth).max()


def test_prompts_of_different_lengths_take_one_decoder_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    predictor = SAM2ImagePredictor(small_model(torch.float32))
    predictor.set_image_batch([picture(i, 30, 50) for i in range(3)])
    calls = []
    original = predictor.model.sam_mask_decoder.forward
    monkeypatch.setattr(
        predictor.model.sam_mask_decoder,
        "forward",
        lambda *a: calls.append(len(a[2])) or original(*a),
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


def test_large_results_come_in_parts(
    predictor: SAM2ImagePredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    boxes = np.array([[i, i, 30 + i, 30] for i in range(5)])
    whole = predictor.predict(box=boxes)[0]
    monkeypatch.setattr(decoding, "ELEMENTS_PER_CALL", 1)
    assert np.array_equal(whole, predictor.predict(box=boxes)[0])


def test_holes_and_specks(predictor: SAM2ImagePredictor) -> None:
    """Small components are gone from the mask at image size; the low-resolution logits stay raw."""
    plain, _, low = predictor.predict(**CLICK)
    predictor._transforms.max_hole_area = predictor._transforms.max_sprinkle_area = 30
    clean, _, low_again = predictor.predict(**CLICK)
    assert np.array_equal(low, low_again)
    assert not np.array_equal(plain, clean)


def test_autocast_and_inference_mode_are_honoured() -> None:
    predictor = SAM2ImagePredictor(small_model())
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        predictor.set_image(picture())
        assert predictor._features["high_res_feats"][0].dtype == torch.bfloat16
        masks, iou, low = predictor.predict(**CLICK)
    assert {a.dtype for a in (masks, iou, low)} == {np.dtype(np.float32)}
    half = SAM2ImagePredictor(small_model(torch.bfloat16))
    half.set_image(picture())
    assert half.predict(**CLICK)[0].shape == (3, 40, 60)


def test_from_pretrained_takes_a_path(tmp_path: Path) -> None:
    from sam2_fast.build_sam import build_sam2

    torch.save(
        {"model": build_sam2("tiny", device="cpu", image_size=64).state_dict()},
        tmp_path / "tiny.pt",
    )
    found = SAM2ImagePredictor.from_pretrained(
        str(tmp_path / "tiny.pt"), device="cpu", image_size=64, mask_threshold=0.5
    )
    assert found.mask_threshold == 0.5
    assert found.model.config.image_size == 64


def test_transforms_without_sizes() -> None:
    transforms = SAM2Transforms(64, 0.0)
    with pytest.raises(ValueError, match="orig_hw"):
        transforms.transform_coords(torch.zeros(1, 2), normalize=True)
    assert transforms.transform_boxes(torch.tensor([[0.0, 0.0, 1.0, 0.5]])).tolist() == [
        [[0.0, 0.0], [64.0, 32.0]]
    ]
    assert transforms.forward_batch([picture(), picture(1, 9, 9)]).shape == (2, 3, 64, 64)
