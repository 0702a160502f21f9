"""Run lengths are equal, byte for byte, to those of pycocotools; malformed ones are refused."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from sam2_fast.io.rle import area_from_rle, compress_rle, decode_rle, encode_rle, mask_to_rle

masks = st.one_of(
    arrays(bool, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40)),
    st.builds(
        lambda small, rows, columns: np.kron(small, np.ones((rows, columns), bool)).astype(bool),
        arrays(bool, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=5)),
        st.integers(1, 90),
        st.integers(1, 90),
    ),
)


@given(masks)
@settings(max_examples=300, deadline=None)
def test_compressed_run_lengths_equal_those_of_pycocotools_and_can_be_decoded(
    mask: np.ndarray,
) -> None:
    coco = pytest.importorskip("pycocotools.mask", reason="compares with pycocotools")
    expected = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    ours = encode_rle(mask)
    assert ours == {"size": [int(side) for side in expected["size"]], "counts": expected["counts"]}
    assert np.array_equal(decode_rle(ours), mask)
    assert area_from_rle(ours) == coco.area(expected) == mask.sum()


@given(
    st.lists(masks.filter(lambda mask: mask.size > 1), min_size=1, max_size=1), st.integers(1, 4)
)
@settings(max_examples=100, deadline=None)
def test_plain_run_lengths_have_the_official_format(one: list[np.ndarray], copies: int) -> None:
    stack = torch.from_numpy(np.stack([np.roll(one[0], step, axis=1) for step in range(copies)]))
    for rle, mask in zip(mask_to_rle(stack), stack, strict=True):
        assert rle["size"] == [*mask.shape]
        assert sum(rle["counts"]) == mask.numel()
        assert rle["counts"][0] == (0 if mask[0, 0] else rle["counts"][0])
        assert all(run > 0 for run in rle["counts"][1:])
        assert np.array_equal(decode_rle(rle), mask.numpy())
        assert compress_rle(rle) == encode_rle(mask, text=True)
        assert area_from_rle(rle) == int(mask.sum())


def test_runs_go_down_the_columns_and_start_with_zeros() -> None:
    mask = torch.tensor([[[1, 0, 0], [1, 0, 1]]], dtype=torch.bool)
    assert mask_to_rle(mask) == [{"size": [2, 3], "counts": [0, 2, 3, 1]}]
    assert mask_to_rle(torch.zeros(1, 2, 3, dtype=torch.bool)) == [{"size": [2, 3], "counts": [6]}]
    assert mask_to_rle(torch.ones(1, 1, 1, dtype=torch.bool)) == [
        {"size": [1, 1], "counts": [0, 1]}
    ]
    assert mask_to_rle(torch.zeros(0, 2, 3, dtype=torch.bool)) == []


def test_non_contiguous_and_numeric_masks_can_be_encoded() -> None:
    base = np.random.default_rng(0).random((30, 40)) > 0.5
    assert encode_rle(base.T) == encode_rle(np.ascontiguousarray(base.T))
    assert encode_rle(base[::-1, ::2]) == encode_rle(base[::-1, ::2].copy())
    assert encode_rle(base.astype(np.float32) * 255) == encode_rle(base)
    assert encode_rle(torch.from_numpy(base)) == encode_rle(base)


def test_a_mask_without_pixels_is_encoded_as_by_pycocotools() -> None:
    assert encode_rle(np.zeros((0, 5), bool)) == {"size": [0, 5], "counts": b"0"}
    assert decode_rle({"size": [0, 5], "counts": b"0"}).shape == (0, 5)


@pytest.mark.parametrize(
    "rle",
    [
        {},
        None,
        {"size": [2, 3]},
        {"size": [2], "counts": b"6"},
        {"size": ["a", 3], "counts": b"6"},
        {"size": [-2, -3], "counts": b"6"},
        {"size": [2, 3], "counts": b""},
        {"size": [2, 3], "counts": b"7"},
        {"size": [2, 3], "counts": b"\xff\xff"},
        {"size": [2, 3], "counts": "é"},
        {"size": [2, 3], "counts": b"P" * 50},
        {"size": [2, 3], "counts": b"o" * 12 + b"0"},
        {"size": [2, 3], "counts": b"O7"},
        {"size": [2, 3], "counts": [1, 2]},
        {"size": [2, 3], "counts": [-1, 7]},
        {"size": [2, 3], "counts": [1.5, 4.5]},
        {"size": [2, 3], "counts": [2**70]},
        {"size": [2, 3], "counts": 6},
        {"size": [10**6, 10**6], "counts": [10**12]},
    ],
)
def test_malformed_run_lengths_are_a_value_error_at_once(rle: object) -> None:
    started = time.thread_time()
    with pytest.raises(ValueError, match=r"^rle"):
        decode_rle(rle)
    assert time.thread_time() - started < 0.5


@given(st.binary(max_size=60), st.integers(0, 50), st.integers(0, 50))
@settings(max_examples=300, deadline=None)
def test_any_bytes_give_a_mask_of_the_right_size_or_a_value_error(
    data: bytes, height: int, width: int
) -> None:
    try:
        mask = decode_rle({"size": [height, width], "counts": data})
    except ValueError:
        return
    assert mask.shape == (height, width)


def test_max_pixels_raises_the_limit() -> None:
    rle = {"size": [100, 100], "counts": [10_000]}
    with pytest.raises(ValueError, match="max_pixels="):
        decode_rle(rle, max_pixels=9_999)
    assert decode_rle(rle, max_pixels=10_000).shape == (100, 100)


def test_masks_of_the_wrong_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[H, W\]"):
        encode_rle(np.zeros((1, 2, 3), bool))
    with pytest.raises(ValueError, match=r"\[N, H, W\]"):
        mask_to_rle(torch.zeros(2, 3, dtype=torch.bool))


def test_real_annotations_can_be_decoded_and_encoded_again(real) -> None:
    import json

    masklets = json.loads((real / "sav_000001_manual.json").read_text())["masklet"]
    for frame in masklets[::20]:
        for rle in frame:
            assert encode_rle(decode_rle(rle), text=True)["counts"] == rle["counts"]
