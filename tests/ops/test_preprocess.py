"""Preprocessing of images: frames are bitwise equal to those of Pillow, and images to those of
torch compiled for the same instruction set.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sam2_fast.ops.core.native import native
from sam2_fast.ops.preprocess import (
    _native_bicubic,
    _native_frame,
    _native_images,
    columns_before_rows,
    preprocess_frame,
    preprocess_frame_reference,
    preprocess_images,
    preprocess_images_reference,
    resize_bicubic,
    resize_bicubic_reference,
)
from tests.ops import cases

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZES = [
    (48, 64, 64),
    (33, 17, 64),
    (200, 90, 64),
    (97, 61, 64),
    (61, 97, 64),
    (300, 401, 129),
    (64, 64, 64),
    (64, 30, 64),
    (30, 64, 64),
    (1, 1, 1),
    (1, 1, 5),
    (7, 5, 1),
    (3, 2000, 24),
    (2000, 3, 24),
    (1500, 1200, 3),
    (130, 150, 65),
    (150, 100, 64),
    (480, 854, 96),
]
"""Height and width in pixels, and the size of the output. The images are reduced, enlarged, of odd
sizes, long, of the output's size, and reduced by a factor of hundreds; the sizes are below, at and
above every threshold of the kernels.
"""


def picture(height: int, width: int, kind: str = "noise") -> Tensor:
    """An image [H, W, 3]: noise, or a checkerboard, at whose edges bicubic resizing overshoots."""
    if kind == "noise":
        generator = torch.Generator().manual_seed(height * 7 + width)
        shape = (height, width, 3)
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    board = (torch.arange(height)[:, None] // 2 + torch.arange(width) // 3) % 2
    return torch.stack([board, 1 - board, board], 2).to(torch.uint8) * 255


def exact(images: Tensor, size: int) -> Tensor:
    """The definition of `preprocess_images` in float64."""
    planes = images.permute(0, 3, 1, 2).double() / 255
    resized = F.interpolate(
        planes, (size, size), mode="bilinear", align_corners=False, antialias=True
    )
    mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (MEAN, STD))
    return (resized - mean) / std


@pytest.mark.proves("reference", "preprocess_frame:cpu", "resize_bicubic:cpu")
@pytest.mark.parametrize("kind", ["noise", "board"])
@pytest.mark.parametrize(("height", "width", "size"), SIZES)
def test_every_instruction_set_gives_the_bytes_of_pillow(
    isa: str, height: int, width: int, size: int, kind: str
) -> None:
    frame = picture(height, width, kind)
    pillow = np.array(Image.fromarray(frame.numpy()).resize((size, size), Image.Resampling.BICUBIC))
    assert np.array_equal(_native_bicubic(frame, size, isa=isa).numpy(), pillow)
    assert torch.equal(
        _native_frame(frame, size, MEAN, STD, isa=isa),
        preprocess_frame_reference(frame, size, MEAN, STD),
    )


TORCH = """
import sys
import torch
from test_preprocess import MEAN, SIZES, STD, picture, preprocess_images_reference

outputs = {
    case: preprocess_images_reference(picture(*case[:2])[None], case[2], MEAN, STD)
    for case in SIZES
}
torch.save((torch.backends.cpu.get_cpu_capability(), outputs), sys.argv[1])
"""
"""Saves the outputs of the reference for all sizes; torch is limited to one instruction set."""


@pytest.fixture(scope="module")
def torch_compiled_for(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], dict[tuple[int, int, int], Tensor]]:
    """Outputs of the reference by size, as a function of the instruction set that torch may use."""
    outputs: dict[str, dict[tuple[int, int, int], Tensor]] = {}

    def outputs_of(capability: str) -> dict[tuple[int, int, int], Tensor]:
        if capability not in outputs:
            file = tmp_path_factory.mktemp(capability) / "outputs.pt"
            path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
            environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability, "PYTHONPATH": path}
            subprocess.run(
                [sys.executable, "-c", TORCH, str(file)], env=environment, check=True, timeout=240
            )
            actual_capability, outputs[capability] = torch.load(file)
            assert actual_capability.lower() == capability
        return outputs[capability]

    return outputs_of


@pytest.mark.skipif(
    sys.platform != "linux" or os.uname().machine != "x86_64",
    reason="the kernels round like torch's x86-64 wheels",
)
def test_every_instruction_set_is_bitwise_equal_to_torch_compiled_for_it(
    isa: str, torch_compiled_for
) -> None:
    capability = {"portable": "default", "avx2": "avx2"}.get(isa, "avx512")
    for (height, width, size), expected in torch_compiled_for(capability).items():
        output = _native_images(picture(height, width)[None], size, MEAN, STD, isa=isa)
        assert torch.equal(output, expected), (height, width, size)


@pytest.mark.proves("reference", "preprocess_images:cpu")
@pytest.mark.parametrize(("height", "width", "size"), SIZES)
def test_images_err_at_most_twice_as_much_as_torch(
    isa: str, height: int, width: int, size: int
) -> None:
    images = torch.stack([picture(height, width), picture(height, width, "board")])
    exact_planes = exact(images, size)
    outputs = (
        _native_images(images, size, MEAN, STD, isa=isa),
        preprocess_images_reference(images, size, MEAN, STD),
    )
    error, torch_error = ((x - exact_planes).square().mean().sqrt() for x in outputs)
    assert error <= 2 * torch_error


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_threads_do_not_change_results(threads: int) -> None:
    default_threads = torch.get_num_threads()
    images = torch.stack([picture(50, 70), picture(50, 70, "board"), picture(50, 70)])
    landscape, portrait = picture(40, 90), picture(90, 40)

    def outputs() -> tuple[Tensor, ...]:
        return (
            preprocess_images(images, 37, MEAN, STD),
            preprocess_frame(landscape, 37, MEAN, STD),
            resize_bicubic(portrait, 5),
        )

    try:
        torch.set_num_threads(1)
        expected = outputs()
        torch.set_num_threads(threads)
        assert all(map(torch.equal, outputs(), expected))
    finally:
        torch.set_num_threads(default_threads)


@pytest.mark.parametrize("height", [31, 90])  # rows are resized first, columns are resized first
def test_strides_do_not_change_results(isa: str, height: int) -> None:
    packed = picture(height, 40)
    planar = packed.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    every_second = picture(2 * height, 120)[::2, ::3]
    cropped = torch.cat([picture(height, 9), packed], 1)[:, 9:]
    transposed = packed.transpose(0, 1).contiguous().transpose(0, 1)
    of_four_channels = torch.cat([packed, packed[..., :1]], 2)[..., :3]
    for frame in (planar, every_second, cropped, transposed, of_four_channels):
        assert not frame.is_contiguous()
        copy = frame.contiguous()
        assert torch.equal(_native_bicubic(frame, 24, isa=isa), _native_bicubic(copy, 24, isa=isa))
        assert torch.equal(
            _native_frame(frame, 24, MEAN, STD, isa=isa),
            _native_frame(copy, 24, MEAN, STD, isa=isa),
        )
        output = _native_images(frame.expand(2, -1, -1, -1), 24, MEAN, STD, isa=isa)
        expected = _native_images(torch.stack([copy, copy]), 24, MEAN, STD, isa=isa)
        assert torch.equal(output, expected)


def test_every_value_of_the_output_is_written(isa: str) -> None:
    module = native()
    assert module is not None
    for height, width, size in SIZES:
        frame = picture(height, width)[None]
        planes = torch.full((1, 3, size, size), torch.nan)
        pixels = torch.full((1, size, size, 3), 77, dtype=torch.uint8)
        module.preprocess(frame, False, False, MEAN, STD, planes, 2, isa)
        assert torch.isfinite(planes).all()
        columns_first = columns_before_rows(height, width, size)
        module.preprocess(frame, True, columns_first, MEAN, STD, pixels, 2, isa)
        assert torch.equal(pixels[0], resize_bicubic_reference(frame[0], size))


def test_all_byte_values_are_normalised_by_true_divisions(isa: str) -> None:
    frame = torch.arange(256, dtype=torch.uint8)[:, None].expand(256, 3).reshape(16, 16, 3)
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    expected = frame.permute(2, 0, 1).float().div(torch.tensor(255.0)).sub(mean).div(std)
    assert torch.equal(_native_frame(frame, 16, MEAN, STD, isa=isa), expected)
    assert torch.equal(_native_images(frame[None], 16, MEAN, STD, isa=isa)[0], expected)


def test_pillow_resizes_columns_first_from_version_13_on() -> None:
    assert columns_before_rows(1920, 1080, 1024, pillow=13)
    assert not columns_before_rows(1920, 1080, 1024, pillow=12)
    assert not columns_before_rows(1080, 1920, 1024, pillow=13)
    assert not columns_before_rows(480, 200, 1024, pillow=13)


def random_bytes(*shape: int, seed: int) -> Tensor:
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 255).byte()


def preprocess_images_case(dtype: torch.dtype) -> cases.Case:
    example, other = (random_bytes(1, 20, 24, 3, seed=seed) for seed in range(2))
    if dtype != torch.uint8:
        example, other = (images.to(dtype) / 255 for images in (example, other))

    def exact(images: Tensor) -> Tensor:
        planes = images.permute(0, 3, 1, 2).double() / (255 if dtype == torch.uint8 else 1)
        planes = F.interpolate(planes, (16, 16), mode="bilinear", antialias=True)
        mean, std = (torch.tensor(values).double()[:, None, None] for values in (MEAN, STD))
        return (planes - mean) / std

    return cases.Case(
        lambda images, **kwargs: preprocess_images(images, 16, MEAN, STD, **kwargs),
        (example,),
        (other,),
        exact,
    )


def frames_case(run: Callable[..., Any]) -> cases.Case:
    example, other = (random_bytes(20, 24, 3, seed=seed) for seed in range(2))
    return cases.Case(run, (example,), (other,))


RECORDED: dict[str, Callable[[], cases.Case]] = {
    "preprocess_images, bytes": lambda: preprocess_images_case(torch.uint8),
    "preprocess_images, floats": lambda: preprocess_images_case(torch.float32),
}
FIXED_BY_VALUES: dict[str, Callable[[], cases.Case]] = {
    "preprocess_frame": lambda: frames_case(
        lambda frame, **kwargs: preprocess_frame(frame, 16, MEAN, STD, **kwargs)
    ),
    "resize_bicubic": lambda: frames_case(
        lambda frame, **kwargs: resize_bicubic(frame, 16, **kwargs)
    ),
}
