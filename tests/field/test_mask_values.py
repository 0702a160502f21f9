"""Masks in arrays and tensors: what is object, and arrays of any byte order and memory."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F

from sam2_fast.evaluation import VideoScores
from sam2_fast.io import area_from_rle, encode_rle, load_mask, mask_to_rle, save_mask
from sam2_fast.io.masks import _shown, describe
from sam2_fast.prompts import to_model_mask

CPU = torch.device("cpu")
SIZE = 64
MASK = np.zeros((48, 80), dtype=bool)
MASK[10:30, 20:50] = True
ROWS, COLUMNS = np.mgrid[0:48, 0:80]
SOFT = np.exp(-((ROWS - 24) ** 2 + (COLUMNS - 40) ** 2) / 120).astype(np.float32)
LOGITS = 12 * SOFT - 6


def official(mask: Any) -> torch.Tensor:
    """The steps of the official `add_new_mask`."""
    if not isinstance(mask, torch.Tensor):
        mask = torch.tensor(mask, dtype=torch.bool)
    original = mask[None, None].float()
    if tuple(mask.shape) == (SIZE, SIZE):
        return original
    resized = F.interpolate(
        original, size=(SIZE, SIZE), align_corners=False, mode="bilinear", antialias=True
    )
    return (resized >= 0.5).float()


@pytest.mark.field("B02")
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("array", [SOFT, LOGITS, MASK * 1.0])
@pytest.mark.parametrize("size", [(48, 80), (SIZE, SIZE)])
def test_tensors_are_prepared_like_the_official_package(
    array: npt.NDArray[np.float32], dtype: str, size: tuple[int, int]
) -> None:
    mask = torch.from_numpy(np.resize(array, size)).to(getattr(torch, dtype))
    assert torch.equal(to_model_mask(mask, SIZE, CPU), official(mask))


@pytest.mark.field("B02")
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int16, torch.int64])
@pytest.mark.parametrize("scale", [1, 255])
def test_integer_tensors_are_prepared_like_the_official_package(
    dtype: torch.dtype, scale: int
) -> None:
    """But 0 and 255 are those of the boolean mask (docs/differences.md)."""
    mask = (torch.from_numpy(MASK).long() * scale).to(dtype)
    assert torch.equal(to_model_mask(mask, SIZE, CPU), official(mask.bool()))


@pytest.mark.field("B02")
@pytest.mark.parametrize(
    "dtype", ["?", "u1", "i1", "<u2", ">u2", "<i4", ">i4", ">i8", "f2", "<f4", ">f4", ">f8"]
)
def test_arrays_of_two_values_are_prepared_like_the_official_package(dtype: str) -> None:
    for scale in (1, 100 if dtype == "i1" else 255):
        mask = (MASK * scale).astype(dtype)
        expected = official(MASK)
        assert torch.equal(to_model_mask(mask, SIZE, CPU), expected)
        assert torch.equal(to_model_mask(mask.tolist(), SIZE, CPU), expected)


REFUSED: dict[str, Callable[[Any], object]] = {
    "to_model_mask": lambda mask: to_model_mask(mask, SIZE, CPU),
    "encode_rle": encode_rle,
    "encode_rle of a tensor": lambda mask: encode_rle(torch.from_numpy(mask)),
    "mask_to_rle": lambda mask: mask_to_rle(torch.from_numpy(mask)[None]),
    "describe": describe,
    "save_mask": lambda mask: save_mask("never.png", mask),
    "VideoScores, truth": lambda mask: VideoScores().add({1: mask}, {1: MASK}),
    "VideoScores, masks": lambda mask: VideoScores().add({1: MASK}, {1: mask}),
}


@pytest.mark.field("B02")
@pytest.mark.parametrize("call", REFUSED)
@pytest.mark.parametrize("array", [SOFT, LOGITS, np.where(MASK, np.nan, 0.0), MASK * 0.5 + 0.25])
def test_floats_that_are_not_a_mask_are_refused(
    call: str, array: npt.NDArray[np.float32], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"mask|truth"):
        REFUSED[call](array)
    assert not list(tmp_path.iterdir())


@pytest.mark.field("B02")
@pytest.mark.parametrize("scale", [1.0, 255.0, 1, 255, True])
def test_two_values_are_a_mask_everywhere(scale: float, tmp_path: Path) -> None:
    mask = MASK * np.asarray(scale)
    assert area_from_rle(encode_rle(mask)) == area_from_rle(encode_rle(torch.from_numpy(mask)))
    assert area_from_rle(encode_rle(mask)) == describe(mask)["area"] == MASK.sum()
    assert area_from_rle(mask_to_rle(torch.from_numpy(mask)[None])[0]) == MASK.sum()
    save_mask(tmp_path / "m.png", mask)
    assert np.array_equal(load_mask(tmp_path / "m.png"), MASK)
    scores = VideoScores()
    scores.add({1: mask}, {1: MASK})
    assert scores.result("v")[0].j == 1.0


@pytest.mark.field("B02")
def test_detections_accept_logits_and_masks_but_not_probabilities() -> None:
    for masks in (LOGITS[None], torch.from_numpy(LOGITS)[None].bfloat16()):
        assert np.array_equal(_shown(masks)[0], LOGITS > 0)
    assert np.array_equal(_shown(MASK[None] * 255.0)[0], MASK)
    for masks in (SOFT[None], np.full((1, 2, 2), np.nan)):
        with pytest.raises(ValueError, match="masks: expected booleans"):
            _shown(masks)


def read_only(array: npt.NDArray[Any], path: Path) -> npt.NDArray[Any]:
    array = array.copy()
    array.flags.writeable = False
    return array


def memory_mapped(array: npt.NDArray[Any], path: Path) -> npt.NDArray[Any]:
    np.save(path / "m.npy", array)
    return np.asarray(np.load(path / "m.npy", mmap_mode="r"))


MEMORY: dict[str, Callable[[npt.NDArray[Any], Path], npt.NDArray[Any]]] = {
    "read-only": read_only,
    "mapped": memory_mapped,
    "negative strides": lambda array, path: array[::-1].copy()[::-1],
    "negative columns": lambda array, path: array[..., ::-1].copy()[..., ::-1],
    "transposed": lambda array, path: np.ascontiguousarray(array.T).T,
    "big-endian": lambda array, path: array.astype(array.dtype.newbyteorder(">")),
    "buffer": lambda array, path: np.frombuffer(array.tobytes(), array.dtype).reshape(array.shape),
}


@pytest.mark.field("B31")
@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("dtype", ["?", "u1", "u2", "f4"])
def test_arrays_of_any_memory_are_read_silently(memory: str, dtype: str, tmp_path: Path) -> None:
    mask = MEMORY[memory](MASK.astype(dtype), tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(to_model_mask(mask, SIZE, CPU), official(MASK))
        assert area_from_rle(encode_rle(mask)) == MASK.sum()
        scores = VideoScores()
        scores.add({1: mask}, {1: mask})
        save_mask(tmp_path / "m.png", mask)
    assert scores.result("v")[0].j == 1.0


@pytest.fixture(scope="module")
def predictor() -> Any:
    from sam2_fast import build_sam2_video_predictor

    return build_sam2_video_predictor("tiny", None, device="cpu", image_size=SIZE, seed=0)


@pytest.mark.field("B02")
@pytest.mark.parametrize("size", [(48, 80), (SIZE, SIZE)])
def test_masks_that_a_predictor_returned_are_the_same_object_again(
    predictor: Any, size: tuple[int, int]
) -> None:
    clip = np.random.default_rng(0).integers(0, 255, (3, *size, 3), np.uint8)
    drawn = np.zeros(size, bool)
    drawn[10:30, 20:50] = True
    logits = predictor.add_new_mask(predictor.init_state(clip), 0, 1, drawn)[2][0, 0]
    again = predictor.add_new_mask(predictor.init_state(clip), 0, 1, logits)[2][0, 0]
    assert (again > 0).sum() == pytest.approx(drawn.sum(), rel=0.1)
    nothing = predictor.add_new_mask(predictor.init_state(clip), 0, 1, logits - 100)[2]
    assert (nothing < 0).all()


@pytest.mark.field("B31")
@pytest.mark.parametrize("memory", MEMORY)
def test_prompts_of_any_memory_are_read_silently(
    predictor: Any, memory: str, tmp_path: Path
) -> None:
    from sam2_fast import SAM2AutomaticMaskGenerator, SAM2ImagePredictor

    def of(values: npt.ArrayLike) -> npt.NDArray[Any]:
        return MEMORY[memory](np.asarray(values, dtype=np.float32), tmp_path)

    image = np.random.default_rng(0).integers(0, 255, (48, 80, 3), np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prompted = SAM2ImagePredictor(predictor)
        prompted.set_image(image)
        hint = MEMORY[memory](np.zeros((1, SIZE // 4, SIZE // 4), np.float32), tmp_path)
        if memory != "transposed":
            prompted.predict(of([[20, 30]]), of([1]), box=of([1, 2, 30, 40]), mask_input=hint)
        state = predictor.init_state(np.stack([image] * 2))
        predictor.add_new_points_or_box(state, 0, 1, points=of([[20, 30]]), labels=of([1]))
        grids = [of([[0.2, 0.3], [0.5, 0.6]])]
        SAM2AutomaticMaskGenerator(
            predictor, points_per_side=None, point_grids=grids, pred_iou_thresh=0.0
        ).generate(image)
