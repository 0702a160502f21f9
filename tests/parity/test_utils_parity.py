"""Helper functions under the official names return the official values."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch


@pytest.fixture(
    params=[
        "utils.amg",
        "utils.misc",
        "utils.transforms",
        "modeling.sam2_utils",
        "modeling.position_encoding",
    ]
)
def pair(request: pytest.FixtureRequest, official_peer: ModuleType) -> tuple[str, Any, Any]:
    """Name of a module, the official module, our module."""
    return (
        request.param,
        importlib.import_module(f"sam2.{request.param}"),
        importlib.import_module(f"sam2_fast.compat.{request.param}"),
    )


def masks(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    random = torch.rand(4, 23, 31, generator=generator) > 0.6
    random[1] = False
    random[2] = True
    return random


def amg_calls(module: Any) -> list[Any]:
    boxes = torch.tensor([[0, 0, 30, 22], [5, 6, 12, 13], [21, 0, 30, 9]])
    rles = module.mask_to_rle_pytorch(masks())
    cleaned = [
        module.remove_small_regions(m.numpy(), area, mode)
        for m in masks()
        for area in (2, 5)
        for mode in ("holes", "islands")
    ]
    return [
        *(
            module.generate_crop_boxes(size, layers, 512 / 1500)
            for size in ((480, 640), (33, 101))
            for layers in (0, 1, 2)
        ),
        *module.build_all_layer_point_grids(8, 2, 2),
        module.is_box_near_crop_edge(boxes, [10, 10, 41, 33], [0, 0, 100, 41]),
        module.box_xyxy_to_xywh(boxes[1]),
        [list(map(list, batch)) for batch in module.batch_iterator(2, [1, 2, 3], "abc")],
        rles,
        [module.rle_to_mask(r) for r in rles],
        [module.area_from_rle(r) for r in rles],
        [module.coco_encode_rle(r) for r in rles],
        module.batched_mask_to_box(masks()),
        module.batched_mask_to_box(masks()[0]),
        module.uncrop_boxes_xyxy(boxes, [3, 4, 9, 9]),
        module.uncrop_points(boxes[:, :2].float(), [3, 4, 9, 9]),
        module.uncrop_masks(masks(), [3, 4, 34, 27], 50, 60),
        module.uncrop_masks(masks(), [0, 0, 31, 23], 23, 31),
        module.calculate_stability_score(torch.linspace(-3, 3, 200).view(1, 10, 20), 0.1, 1.0),
        cleaned,
    ]


def misc_calls(module: Any) -> list[Any]:
    points = torch.ones(2, 1, 2)
    labels = torch.ones(2, 1)
    once = module.concat_points(None, points, labels)
    return [
        module.mask_to_box(masks()[:, None]),
        module.get_sdpa_settings(),
        once,
        module.concat_points(once, points * 2, labels * 0),
    ]


def transforms_calls(module: Any) -> list[Any]:
    transforms = module.SAM2Transforms(64, 0.0)
    coords = torch.tensor([[3.0, 7.0], [100.0, 50.0]])
    return [
        transforms.transform_coords(coords, True, (60, 110)),
        transforms.transform_coords(coords / 100),
        transforms.transform_boxes(torch.tensor([1.0, 2, 50, 40]), True, (60, 110)),
        transforms.postprocess_masks(torch.linspace(-1, 1, 2 * 3 * 16).view(2, 3, 4, 4), (9, 11)),
    ]


def sam2_utils_calls(module: Any) -> list[Any]:
    frames = {t: str(t) for t in (9, 1, 4, 30, 12)}
    truth, predicted = masks(0)[:, None], masks(1)[:, None]
    return [
        *(
            module.select_closest_cond_frames(now, frames, limit)
            for now in (0, 10, 40)
            for limit in (-1, 2, 3, 9)
        ),
        module.get_1d_sine_pe(torch.tensor([-3.0, 0.0, 0.4]), 64),
        module.sample_one_point_from_error_center(truth[2:3], predicted[:1]),
        module.sample_box_points(truth[:1], noise=0.0)[1],
        module.sample_box_points(truth[:1], noise=0.0)[0].float(),
    ]


def position_encoding_calls(module: Any) -> list[Any]:
    return [
        module.PositionEmbeddingSine(64, normalize=True, scale=None, temperature=10000)(
            torch.zeros(2, 3, 5, 7)
        )
    ]


def as_lists(value: Any) -> Any:
    """Tensors and arrays as their dtype's kind and nested lists of numbers."""
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return [str(np.asarray(value).dtype.kind), np.asarray(value).tolist()]
    if isinstance(value, dict):
        return {k: as_lists(v) for k, v in value.items()}
    return [as_lists(v) for v in value] if isinstance(value, (list, tuple)) else value


def flatten(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [part for k, v in value.items() for part in (k, *flatten(v))]
    return [part for v in value for part in flatten(v)] if isinstance(value, list) else [value]


def test_helpers_return_the_official_values(pair: tuple[str, Any, Any]) -> None:
    name, official_module, our_module = pair
    if name == "utils.amg":
        pytest.importorskip("cv2")
        pytest.importorskip("pycocotools")
    calls = globals()[name.rsplit(".")[-1] + "_calls"]
    results = zip(calls(official_module), calls(our_module), strict=True)
    for i, (official, ours) in enumerate(results):
        expected = flatten(as_lists(official))
        actual = flatten(as_lists(ours))
        assert len(expected) == len(actual), i
        for a, b in zip(expected, actual, strict=True):
            assert a == (pytest.approx(b, nan_ok=True) if isinstance(b, float) else b), i
