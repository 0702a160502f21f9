"""Pictures to model input in Triton: Pillow's bytes and torch's accuracy in the interpreter and on
a GPU, compiled for several.
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
    (20, 16, 3),
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

kernels.LONG = kernels.SHORT = 128  # the interpreter takes its time for each block
for height, width, size in SMALL:
    for kind in ("noise", "board"):
        frame = picture(height, width, kind)
        columns = columns_before_rows(height, width, size)
        found = kernels.resample(frame[None], size, True, columns)[0]
        assert torch.equal(found, resize_bicubic_reference(frame, size)), (height, width, size)
        found = kernels.resample(frame[None], size, True, columns, MEAN, STD)[0]
        assert torch.equal(found, preprocess_frame_reference(frame, size, MEAN, STD)), (
            height,
            width,
            size,
        )
    turned = frame.transpose(0, 1)  # strided; and what is first on one axis is second on the other
    there = kernels.resample(turned[None], size, True, not columns)[0].transpose(0, 1)
    assert torch.equal(there, kernels.resample(frame[None], size, True, columns)[0])
    images = torch.stack([picture(height, width), picture(height, width, "board")])
    truth = exact(images, size)
    mine = (kernels.resample(images, size, False, False, MEAN, STD) - truth).square().mean().sqrt()
    theirs = (preprocess_images_reference(images, size, MEAN, STD) - truth).square().mean().sqrt()
    assert mine <= 2 * theirs, (height, width, size, mine, theirs)
assert kernels.resample(picture(4, 4)[None][:0], 8, False, False, MEAN, STD).shape == (0, 3, 8, 8)
"""


@pytest.mark.proves(
    "interpreted", "preprocess_frame:triton", "preprocess_images:triton", "resize_bicubic:triton"
)
def test_gives_pillows_bytes_and_torchs_accuracy_in_the_interpreter() -> None:
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
    kinds = dict.fromkeys(kernels.resample_kernel.arg_names, "i32") | {
        "first_starts": "*i32",
        "second_starts": "*i32",
        "statistics": "*fp32",
    }
    kinds |= {"source": "*u8", "out": "*fp32" if planes else "*u8"}
    kinds |= dict.fromkeys(("first_weights", "second_weights"), "*i32" if bicubic else "*fp32")
    fixed: dict[str, Any] = {
        "BICUBIC": bicubic,
        "PLANES": planes,
        "SECOND": kernels.SHORT,
        "FIRST": kernels.LONG,
        "FIXED": kernels.FIXED,
    }
    found = resources(kernels.resample_kernel, kinds, fixed, capability, 4, 3)
    assert found[1] == 0, found


@pytest.mark.parametrize("op", ["images", "frame", "bicubic"])
def test_says_why_it_refuses(op: str) -> None:
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
def test_gives_pillows_bytes_and_torchs_accuracy_on_a_gpu(
    height: int, width: int, size: int
) -> None:
    if reason := no_triton():
        pytest.skip(reason)
    frame, images = (
        picture(height, width, "board"),
        torch.stack([picture(height, width), picture(height, width, "board")]),
    )
    on_gpu = frame.cuda(), images.cuda()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = (
            resize_bicubic(on_gpu[0], size, backend="triton"),
            preprocess_frame(on_gpu[0], size, MEAN, STD, backend="triton"),
        )
        planes = preprocess_images(on_gpu[1], size, MEAN, STD, backend="triton")
    stream.synchronize()
    assert torch.equal(found[0].cpu(), resize_bicubic_reference(frame, size))
    assert torch.equal(found[1].cpu(), preprocess_frame(frame, size, MEAN, STD, backend="torch"))
    truth = exact(images, size)
    theirs = (
        (preprocess_images(on_gpu[1], size, MEAN, STD, backend="torch").cpu() - truth)
        .square()
        .mean()
        .sqrt()
    )
    assert (planes.cpu() - truth).square().mean().sqrt() <= 2 * theirs
