"""Preprocessing of images in Triton: the bytes of Pillow and the accuracy of torch, in the
interpreter and on a GPU, and compiled code for several GPUs.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sam2_fast.ops.core.native import no_triton
from sam2_fast.ops.core.registry import BackendError
from sam2_fast.ops.preprocess import (
    preprocess_frame,
    preprocess_images,
    resize_bicubic,
    resize_bicubic_reference,
)
from tests.ops.test_preprocess import MEAN, SIZES, STD, exact, picture
from tests.ops.triton_tools import interpret, resources

SMALL = [
    (48, 64, 64),
    (33, 17, 40),
    (200, 90, 64),
    (61, 97, 64),
    (64, 64, 64),
    (64, 30, 64),
    (1, 1, 1),
    (1, 1, 5),
    (7, 5, 1),
    (3, 150, 24),
    (150, 3, 24),
    (12, 10, 3),
    (96, 96, 70),
]

INTERPRETED = """
from sam2_fast.kernels import preprocess as kernels
from sam2_fast.ops.preprocess import (
    columns_before_rows,
    preprocess_frame_reference,
    preprocess_images_reference,
    resize_bicubic_reference,
)
from tests.ops.test_preprocess import MEAN, STD, exact, picture
from tests.ops.test_preprocess_triton import SMALL

# The time of the interpreter is proportional to the number of blocks.
kernels.LONG = kernels.SHORT = 128
for height, width, size in SMALL:
    for kind in ("noise", "board"):
        frame = picture(height, width, kind)
        columns = columns_before_rows(height, width, size)
        shape = (height, width, size)
        resized = kernels.resample(frame[None], size, True, columns)[0]
        assert torch.equal(resized, resize_bicubic_reference(frame, size)), shape
        planes = kernels.resample(frame[None], size, True, columns, MEAN, STD)[0]
        assert torch.equal(planes, preprocess_frame_reference(frame, size, MEAN, STD)), shape
    # A transposed frame is strided, and its axes are resized in the opposite order.
    transposed = kernels.resample(frame.transpose(0, 1)[None], size, True, not columns)[0]
    assert torch.equal(transposed.transpose(0, 1), resized), shape
    images = torch.stack([picture(height, width), picture(height, width, "board")])
    exact_planes = exact(images, size)
    errors = [
        (planes - exact_planes).square().mean().sqrt()
        for planes in (
            kernels.resample(images, size, False, False, MEAN, STD),
            preprocess_images_reference(images, size, MEAN, STD),
        )
    ]
    assert errors[0] <= 2 * errors[1], (*shape, errors)
assert kernels.resample(picture(4, 4)[None][:0], 8, False, False, MEAN, STD).shape == (0, 3, 8, 8)
"""


@pytest.mark.proves(
    "interpreted", "preprocess_frame:triton", "preprocess_images:triton", "resize_bicubic:triton"
)
def test_has_the_bytes_of_pillow_and_the_accuracy_of_torch_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    interpret(INTERPRETED)


@pytest.mark.proves(
    "compiled", "preprocess_frame:triton", "preprocess_images:triton", "resize_bicubic:triton"
)
@pytest.mark.parametrize("capability", [80, 90, 120])
@pytest.mark.parametrize("constants", [(True, True), (True, False), (False, True)], ids=str)
def test_compiles_without_spills(constants: tuple[bool, bool], capability: int) -> None:
    pytest.importorskip("triton")
    from sam2_fast.kernels import preprocess as kernels

    bicubic, planes = constants
    types = dict.fromkeys(kernels.resample_kernel.arg_names, "i32")
    types |= {"first_starts": "*i32", "second_starts": "*i32", "statistics": "*fp32"}
    types |= {"source": "*u8", "out": "*fp32" if planes else "*u8"}
    types |= dict.fromkeys(("first_weights", "second_weights"), "*i32" if bicubic else "*fp32")
    kernel_constants: dict[str, Any] = {
        "BICUBIC": bicubic,
        "PLANES": planes,
        "SECOND": kernels.SHORT,
        "FIRST": kernels.LONG,
        "FIXED": kernels.FIXED,
    }
    used = resources(kernels.resample_kernel, types, kernel_constants, capability, 4, 3)
    assert used.spilled_bytes == 0, used


@pytest.mark.parametrize("op", ["images", "frame", "bicubic"])
def test_a_refusal_without_a_gpu_names_the_next_backend(op: str) -> None:
    with pytest.raises(BackendError, match=r"triton refuses: .*Would run: cpu"):
        if op == "images":
            preprocess_images(picture(8, 8)[None], 4, MEAN, STD, backend="triton")
        elif op == "frame":
            preprocess_frame(picture(8, 8), 4, MEAN, STD, backend="triton")
        else:
            resize_bicubic(picture(8, 8), 4, backend="triton")


@pytest.mark.proves(
    "gpu test", "preprocess_frame:triton", "preprocess_images:triton", "resize_bicubic:triton"
)
@pytest.mark.gpu
@pytest.mark.parametrize(("height", "width", "size"), [*SIZES, (1080, 1920, 1024)])
def test_has_the_bytes_of_pillow_and_the_accuracy_of_torch_on_a_gpu(
    height: int, width: int, size: int
) -> None:
    if reason := no_triton():
        pytest.skip(reason)
    frame = picture(height, width, "board")
    images = torch.stack([picture(height, width), frame])
    frame_on_gpu, images_on_gpu = frame.cuda(), images.cuda()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        resized = resize_bicubic(frame_on_gpu, size, backend="triton")
        planes = preprocess_frame(frame_on_gpu, size, MEAN, STD, backend="triton")
        output = preprocess_images(images_on_gpu, size, MEAN, STD, backend="triton")
    stream.synchronize()
    assert torch.equal(resized.cpu(), resize_bicubic_reference(frame, size))
    assert torch.equal(planes.cpu(), preprocess_frame(frame, size, MEAN, STD, backend="torch"))
    reference = preprocess_images(images_on_gpu, size, MEAN, STD, backend="torch")
    exact_planes = exact(images, size)
    error, torch_error = (
        (x.cpu() - exact_planes).square().mean().sqrt() for x in (output, reference)
    )
    assert error <= 2 * torch_error
