"""Preprocessing of images: accepted and refused arguments, and the backend that runs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sam2_fast.ops.core.native import native, no_cpu
from sam2_fast.ops.core.registry import BackendError
from sam2_fast.ops.preprocess import (
    _native_images,
    preprocess_frame,
    preprocess_images,
    resize_bicubic,
)
from tests.ops.test_preprocess import MEAN, STD, picture


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_no_images_give_an_empty_output(backend: str) -> None:
    images = torch.zeros(0, 4, 6, 3, dtype=torch.uint8)
    output = preprocess_images(images, 8, MEAN, STD, backend=backend)
    assert output.shape == (0, 3, 8, 8)


def test_auto_runs_the_native_kernel_for_bytes_and_the_reference_for_other_dtypes() -> None:
    images = picture(20, 30)[None]
    floats = (images / 255).requires_grad_()
    output = preprocess_images(floats, 16, MEAN, STD)
    output.sum().backward()
    output_of_bytes = preprocess_images(images, 16, MEAN, STD)
    assert floats.grad is not None and torch.allclose(output, output_of_bytes, atol=1e-5)
    assert torch.equal(output_of_bytes, _native_images(images, 16, MEAN, STD))
    with pytest.raises(
        BackendError, match=r"preprocess_images: cpu refuses: .*float32.*Would run: torch"
    ):
        preprocess_images(floats, 16, MEAN, STD, backend="cpu")
    with pytest.raises(
        BackendError, match=r"resize_bicubic: cpu refuses: .*2\^24.*Would run: torch"
    ):
        resize_bicubic(images[0], 2**24 + 1, backend="cpu")


def test_results_are_on_the_device_of_the_images_and_not_on_the_default_device() -> None:
    frame = picture(6, 9)

    def outputs() -> tuple[Tensor, ...]:
        return (
            preprocess_images(frame[None], 4, MEAN, STD),
            preprocess_frame(frame, 4, MEAN, STD),
            resize_bicubic(frame, 4),
        )

    expected = outputs()
    with torch.device("meta"):
        actual = outputs()
    assert all(map(torch.equal, actual, expected))


def test_floating_point_images_are_not_modified() -> None:
    for dtype in (torch.float32, torch.float64):
        floats = torch.rand(1, 8, 8, 3, dtype=dtype)
        before = floats.clone()
        preprocess_images(floats, 8, MEAN, STD)
        assert torch.equal(floats, before)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: preprocess_images(x, 8, MEAN, STD), r"images: expected \[B, H, W, 3\]"),
        (
            lambda x: preprocess_images(x[None].int(), 8, MEAN, STD),
            "images: expected uint8 or floating point",
        ),
        (
            lambda x: preprocess_images(x[None], 0, MEAN, STD),
            "size: expected a positive number of pixels, got 0",
        ),
        (
            lambda x: preprocess_images(x[None], 8, MEAN[:2], STD),
            "mean, std: expected three numbers each, got 2 and 3",
        ),
        (lambda x: preprocess_frame(x[None], 8, MEAN, STD), r"frame: expected \[H, W, 3\]"),
        (
            lambda x: preprocess_frame(x.float(), 8, MEAN, STD),
            "frame: expected uint8, got torch.float32",
        ),
        (
            lambda x: resize_bicubic(x[:0], 8),
            r"frame: expected \[H, W, 3\] with at least one pixel",
        ),
        (lambda x: resize_bicubic(x[..., :2], 8), r"frame: expected \[H, W, 3\]"),
        (lambda x: resize_bicubic(x, -1), "size: expected a positive number of pixels, got -1"),
    ],
)
def test_arguments_that_do_not_fit_are_named(
    call: Callable[[Tensor], Tensor], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        call(picture(4, 5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pictures": picture(4, 5)}, "pictures: expected"),
        ({"pictures": picture(4, 5)[None].float()}, "pictures: expected"),
        ({"pictures": picture(4, 5)[None, :0]}, "pictures, out: expected sides of 1"),
        (
            {"pictures": picture(4, 5)[None, :, ::2], "columns_first": True, "bicubic": True},
            "pictures: expected packed pixels",
        ),
        ({"columns_first": True}, "pictures: expected packed pixels, for bicubic"),
        ({"out": torch.empty(2, 3, 8, 8)}, "out: expected 4 dimensions, as many pictures"),
        (
            {"out": torch.empty(1, 3, 7, 8)},
            r"out: expected \[1, 3, 8, 8\] float32|out: expected \[1, 3, 7, 7\] float32",
        ),
        ({"out": torch.empty(1, 3, 8, 16)[..., ::2]}, "out: expected a contiguous tensor"),
        (
            {"out": torch.empty(1, 8, 8, 3, dtype=torch.uint8)},
            r"out: expected \[B, S, S, 3\], for bicubic",
        ),
        ({"mean": [0.0]}, "mean, std: expected three numbers each"),
        ({"isa": "mmx"}, "isa: expected an instruction set"),
    ],
)
def test_the_binding_checks_its_arguments(change: dict[str, object], message: str) -> None:
    module = native()
    if module is None:
        pytest.skip(str(no_cpu()))
    arguments = {
        "pictures": picture(4, 5)[None],
        "bicubic": False,
        "columns_first": False,
        "mean": MEAN,
        "std": STD,
        "out": torch.empty(1, 3, 8, 8),
        "num_threads": 1,
        "isa": "portable",
    }
    with pytest.raises(ValueError, match=message):
        module.preprocess(**arguments | change)


def test_opcheck_passes() -> None:
    frame = picture(6, 9)
    statistics = (list(MEAN), list(STD))
    torch.library.opcheck(torch.ops.sam2_fast.preprocess_images, (frame[None], 8, *statistics))
    torch.library.opcheck(torch.ops.sam2_fast.preprocess_frame, (frame, 8, *statistics))
    torch.library.opcheck(torch.ops.sam2_fast.resize_bicubic, (frame, 8))


def test_fake_tensors_do_not_reach_native_code() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        frame = torch.empty(6, 9, 3, dtype=torch.uint8)
        assert preprocess_images(frame[None], 8, MEAN, STD).shape == (1, 3, 8, 8)
        assert preprocess_frame(frame, 8, MEAN, STD).dtype == torch.float32
        assert resize_bicubic(frame, 8).shape == (8, 8, 3)
