"""Arguments of image predictors, mask generators and prompts: right, or refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from sam2_fast import SAM2AutomaticMaskGenerator, SAM2ImagePredictor
from sam2_fast.io.rle import mask_to_rle
from tests.reliability.image_models import picture, small_model
from tests.reliability.session_calls import CLICK, CLIP, clicked
from tests.video.conftest import small_predictor


@pytest.fixture(scope="module")
def predictor() -> SAM2ImagePredictor:
    return SAM2ImagePredictor(small_model())


@pytest.fixture(scope="module")
def video() -> Any:
    return small_predictor()


ODD_TENSORS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "meta": lambda x: x.to("meta"),
    "sparse": lambda x: x.to_sparse(),
    "complex": lambda x: x.to(torch.complex64),
    "nested": lambda x: torch.nested.nested_tensor([*x]),
    "quantised": lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.quint8),
}


@pytest.mark.reliability("33", "34", "36")
@pytest.mark.parametrize("kind", [*ODD_TENSORS])
def test_tensors_without_plain_numbers_are_refused_by_name(
    predictor: Any, video: Any, kind: str
) -> None:
    odd = ODD_TENSORS[kind]
    predictor.set_image(picture(0))
    expected = predictor.predict(point_coords=[[9.0, 9.0]], point_labels=[1])[0]
    session = clicked(video)
    calls: dict[str, Callable[[], Any]] = {
        "image": lambda: predictor.set_image(odd(torch.rand(3, 8, 8))),
        "point_coords": lambda: predictor.predict(odd(torch.ones(1, 2)), [1]),
        "point_labels": lambda: predictor.predict([[1, 1]], odd(torch.ones(1, 1))),
        "box": lambda: predictor.predict(box=odd(torch.ones(1, 4))),
        "mask_input": lambda: predictor.predict(mask_input=odd(torch.zeros(1, 16, 16))),
        "points": lambda: video.add_new_points_or_box(session, 0, 1, odd(torch.ones(1, 2)), [1]),
        "mask": lambda: video.add_new_mask(session, 0, 1, odd(torch.ones(48, 72))),
        "masks": lambda: mask_to_rle(odd(torch.ones(1, 8, 8))),
    }
    for name, call in calls.items():
        with pytest.raises(ValueError, match=f"^{name}: expected a dense tensor of real") as error:
            call()
        assert "\n" not in str(error.value)
    again = predictor.predict(point_coords=[[9.0, 9.0]], point_labels=[1])[0]
    assert np.array_equal(again, expected)


@pytest.mark.reliability("33")
def test_views_with_a_negative_bit_are_used_as_their_values(predictor: Any) -> None:
    image = torch.rand(3, 20, 30)
    outputs = []
    for pixels in (image, torch._neg_view(-image)):
        predictor.set_image(pixels)
        outputs.append(predictor.predict(box=[3, 3, 20, 15])[2])
    assert np.array_equal(*outputs)


@pytest.mark.reliability("34")
@pytest.mark.parametrize(
    "points", [[["1", "2"]], np.ones((1, 2), complex), np.array([["1", 2]], object), [[1 + 2j, 1]]]
)
def test_coordinates_that_are_no_numbers_are_refused(predictor: Any, points: Any) -> None:
    predictor.set_image(picture(0))
    with pytest.raises(ValueError, match=r"^point_coords: expected numbers, got "):
        predictor.predict(points, [1])


@pytest.mark.reliability("35")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pred_iou_thresh", float("nan")),
        ("stability_score_thresh", float("inf")),
        ("stability_score_offset", None),
        ("mask_threshold", "0"),
        ("box_nms_thresh", -1),
        ("crop_nms_thresh", float("nan")),
        ("crop_overlap_ratio", 1.0),
        ("min_mask_region_area", float("inf")),
        ("points_per_batch", 1.5),
        ("points_per_batch", True),
        ("points_per_side", 2.5),
        ("crop_n_layers", 1.0),
        ("crop_n_points_downscale_factor", 0),
    ],
)
def test_options_of_the_generator_are_checked_by_name(
    predictor: Any, name: str, value: object
) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected "):
        SAM2AutomaticMaskGenerator(predictor.model, **{name: value})


@pytest.mark.reliability("35")
@pytest.mark.parametrize("grid", [[[np.nan, 0.5]], [["a", "b"]], [[1j, 0.5]]])
def test_grids_of_other_than_finite_numbers_are_refused(predictor: Any, grid: Any) -> None:
    with pytest.raises(ValueError, match=r"^point_grids: expected 1 arrays"):
        SAM2AutomaticMaskGenerator(
            predictor.model, points_per_side=None, point_grids=[np.array(grid)]
        )


@pytest.mark.reliability("35")
@pytest.mark.parametrize("size", [(2, 3), (1, 1), (1, 40)])
def test_crops_of_an_image_of_a_few_pixels(predictor: Any, size: tuple[int, int]) -> None:
    generator = SAM2AutomaticMaskGenerator(
        predictor.model,
        points_per_side=2,
        crop_n_layers=3,
        pred_iou_thresh=0.0,
        stability_score_thresh=0.0,
    )
    records = generator.generate(picture(0)[: size[0], : size[1]])
    assert all(record["segmentation"].shape == size for record in records)


@pytest.mark.reliability("11")
@pytest.mark.parametrize(
    "prompt", [{"points": [[1e6, -1e6]], "labels": [1]}, {"box": [1, 1, 99, 9]}]
)
def test_strict_prompts_refuse_coordinates_outside_the_image(video: Any, prompt: Any) -> None:
    session = clicked(video)
    with pytest.warns(UserWarning, match="lies outside the 72 x 48 image"):
        video.add_new_points_or_box(session, 0, 1, **prompt)
    image = SAM2ImagePredictor(video)
    image.set_image(CLIP[0])
    arguments = {
        "point_coords": prompt.get("points"),
        "point_labels": prompt.get("labels"),
        "box": prompt.get("box"),
    }
    with pytest.warns(UserWarning, match="lies outside the 72 x 48 image"):
        image.predict(**arguments)
    video.strict_prompts = True
    try:
        with pytest.raises(ValueError, match="expected coordinates in the 72 x 48 image"):
            video.add_new_points_or_box(session, 0, 1, **prompt)
        with pytest.raises(ValueError, match="expected coordinates in the 72 x 48 image"):
            image.predict(**arguments)
        video.add_new_points_or_box(session, 0, 1, **CLICK)
    finally:
        del video.strict_prompts


@pytest.mark.reliability("4")
@pytest.mark.parametrize("frame", [torch.tensor(True), np.bool_(True), np.array(True), 1.0, "1"])
def test_frame_numbers_are_integers(video: Any, frame: Any) -> None:
    session = clicked(video)
    with pytest.raises(TypeError, match=r"^frame_idx: expected an integer, got "):
        video.add_new_points_or_box(session, frame, 1, **CLICK)
    for number in (1, torch.tensor(1), np.int8(1), np.array(1)):
        assert video.add_new_points_or_box(session, number, 1, **CLICK)[0] == 1
