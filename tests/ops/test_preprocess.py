"""Pictures to model input: frames to the bit of Pillow, images to the bit of torch compiled for the
same instruction set.
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

from sam2_fast.ops.core.native import native, no_cpu
from sam2_fast.ops.core.registry import BackendError
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
"""Height and width in pixels, size: shrunk, enlarged, odd, long, the same, by a factor of hundreds,
on all sides of every threshold.
"""


def picture(height: int, width: int, kind: str = "noise") -> Tensor:
    if kind == "noise":
        return torch.randint(
            0,
            256,
            (height, width, 3),
            dtype=torch.uint8,
            generator=torch.Generator().manual_seed(height * 7 + width),
        )
    board = (
        torch.arange(height)[:, None] // 2 + torch.arange(width) // 3
    ) % 2  # overshoots on both sides where it is enlarged
    return torch.stack([board, 1 - board, board], 2).to(torch.uint8) * 255


def exact(images: Tensor, size: int) -> Tensor:
    """The definition of the image path in float64."""
    planes = images.permute(0, 3, 1, 2).double() / 255
    resized = F.interpolate(
        planes, (size, size), mode="bilinear", align_corners=False, antialias=True
    )
    mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (MEAN, STD))
    return (resized - mean) / std


def poisoned(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return (
        torch.full(shape, torch.nan)
        if dtype.is_floating_point
        else torch.full(shape, 77, dtype=dtype)
    )


@pytest.mark.proves("reference", "preprocess_frame:cpu", "resize_bicubic:cpu")
@pytest.mark.parametrize("kind", ["noise", "board"])
@pytest.mark.parametrize(("height", "width", "size"), SIZES)
def test_every_instruction_set_gives_pillows_bytes(
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

found = {
    case: preprocess_images_reference(picture(*case[:2])[None], case[2], MEAN, STD)
    for case in SIZES
}
torch.save((torch.backends.cpu.get_cpu_capability(), found), sys.argv[1])
"""


@pytest.fixture(scope="module")
def torch_compiled_for(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], dict[tuple[int, int, int], Tensor]]:
    """The reference of each size, computed by torch restricted to an instruction set."""
    known: dict[str, dict[tuple[int, int, int], Tensor]] = {}

    def results(capability: str) -> dict[tuple[int, int, int], Tensor]:
        if capability not in known:
            file = tmp_path_factory.mktemp(capability) / "found.pt"
            path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
            environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability, "PYTHONPATH": path}
            subprocess.run(
                [sys.executable, "-c", TORCH, str(file)], env=environment, check=True, timeout=240
            )
            told, known[capability] = torch.load(file)
            assert told.lower() == capability
        return known[capability]

    return results


@pytest.mark.skipif(
    sys.platform != "linux" or os.uname().machine != "x86_64",
    reason="torch's roundings are those of its x86-64 wheels",
)
def test_every_instruction_set_gives_the_bits_of_torch_compiled_for_it(
    isa: str, torch_compiled_for
) -> None:
    capability = {"portable": "default", "avx2": "avx2"}.get(isa, "avx512")
    for (height, width, size), expected in torch_compiled_for(capability).items():
        found = _native_images(picture(height, width)[None], size, MEAN, STD, isa=isa)
        assert torch.equal(found, expected), (height, width, size)


@pytest.mark.proves("reference", "preprocess_images:cpu")
@pytest.mark.parametrize(("height", "width", "size"), SIZES)
def test_the_error_of_images_is_at_most_twice_torchs(
    isa: str, height: int, width: int, size: int
) -> None:
    images = torch.stack([picture(height, width), picture(height, width, "board")])
    truth = exact(images, size)
    ours = (_native_images(images, size, MEAN, STD, isa=isa) - truth).square().mean().sqrt()
    theirs = (preprocess_images_reference(images, size, MEAN, STD) - truth).square().mean().sqrt()
    assert ours <= 2 * theirs


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_threads_do_not_matter(threads: int) -> None:
    before = torch.get_num_threads()
    images = torch.stack([picture(50, 70), picture(50, 70, "board"), picture(50, 70)])
    wide, tall = picture(40, 90), picture(90, 40)
    try:
        torch.set_num_threads(1)
        expected = (
            preprocess_images(images, 37, MEAN, STD),
            preprocess_frame(wide, 37, MEAN, STD),
            resize_bicubic(tall, 5),
        )
        torch.set_num_threads(threads)
        found = (
            preprocess_images(images, 37, MEAN, STD),
            preprocess_frame(wide, 37, MEAN, STD),
            resize_bicubic(tall, 5),
        )
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("height", [31, 90])  # rows first, columns first
def test_strides_do_not_matter(isa: str, height: int) -> None:
    packed = picture(height, 40)
    planar = packed.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    holed = picture(2 * height, 120)[::2, ::3]
    cropped = torch.cat([picture(height, 9), packed], 1)[:, 9:]
    turned = packed.transpose(0, 1).contiguous().transpose(0, 1)
    four = torch.cat([packed, packed[..., :1]], 2)[..., :3]
    for frame in (planar, holed, cropped, turned, four):
        assert not frame.is_contiguous()
        same = frame.contiguous()
        assert torch.equal(_native_bicubic(frame, 24, isa=isa), _native_bicubic(same, 24, isa=isa))
        assert torch.equal(
            _native_frame(frame, 24, MEAN, STD, isa=isa),
            _native_frame(same, 24, MEAN, STD, isa=isa),
        )
        found = _native_images(frame.expand(2, -1, -1, -1), 24, MEAN, STD, isa=isa)
        assert torch.equal(found, _native_images(torch.stack([same, same]), 24, MEAN, STD, isa=isa))


def test_every_number_is_written(isa: str) -> None:
    module = native()
    assert module is not None
    for height, width, size in SIZES:
        frame = picture(height, width)[None]
        planes, pixels = (
            poisoned((1, 3, size, size), torch.float32),
            poisoned((1, size, size, 3), torch.uint8),
        )
        module.preprocess(frame, False, False, MEAN, STD, planes, 2, isa)
        assert torch.isfinite(planes).all()
        columns_first = columns_before_rows(height, width, size)
        module.preprocess(frame, True, columns_first, MEAN, STD, pixels, 2, isa)
        assert torch.equal(pixels[0], resize_bicubic_reference(frame[0], size))


def test_bytes_of_every_value_are_normalised_by_true_divisions(isa: str) -> None:
    frame = torch.arange(256, dtype=torch.uint8)[:, None].expand(256, 3).reshape(16, 16, 3)
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    expected = frame.permute(2, 0, 1).float().div(torch.tensor(255.0)).sub(mean).div(std)
    assert torch.equal(_native_frame(frame, 16, MEAN, STD, isa=isa), expected)
    assert torch.equal(_native_images(frame[None], 16, MEAN, STD, isa=isa)[0], expected)


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_no_images(backend: str) -> None:
    assert preprocess_images(
        torch.zeros(0, 4, 6, 3, dtype=torch.uint8), 8, MEAN, STD, backend=backend
    ).shape == (0, 3, 8, 8)


def test_pillow_resizes_columns_first_from_version_13_on() -> None:
    assert columns_before_rows(1920, 1080, 1024, pillow=13) and not columns_before_rows(
        1920, 1080, 1024, pillow=12
    )
    assert not columns_before_rows(1080, 1920, 1024, pillow=13) and not columns_before_rows(
        480, 200, 1024, pillow=13
    )


def test_auto_is_native_for_bytes_on_a_cpu_and_the_reference_for_the_rest() -> None:
    images = picture(20, 30)[None]
    floats = (images / 255).requires_grad_()
    found = preprocess_images(floats, 16, MEAN, STD)
    found.sum().backward()
    assert floats.grad is not None and torch.allclose(
        found, preprocess_images(images, 16, MEAN, STD), atol=1e-5
    )
    assert torch.equal(
        preprocess_images(images, 16, MEAN, STD), _native_images(images, 16, MEAN, STD)
    )
    with pytest.raises(
        BackendError, match=r"preprocess_images: cpu refuses: .*float32.*Would run: torch"
    ):
        preprocess_images(floats, 16, MEAN, STD, backend="cpu")
    with pytest.raises(
        BackendError, match=r"resize_bicubic: cpu refuses: .*2\^24.*Would run: torch"
    ):
        resize_bicubic(images[0], 2**24 + 1, backend="cpu")


def test_the_result_is_where_the_picture_is_whatever_the_default_device() -> None:
    frame = picture(6, 9)
    expected = (
        preprocess_images(frame[None], 4, MEAN, STD),
        preprocess_frame(frame, 4, MEAN, STD),
        resize_bicubic(frame, 4),
    )
    with torch.device("meta"):
        found = (
            preprocess_images(frame[None], 4, MEAN, STD),
            preprocess_frame(frame, 4, MEAN, STD),
            resize_bicubic(frame, 4),
        )
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_floats_are_left_as_they_were() -> None:
    for dtype in (torch.float32, torch.float64):
        floats = torch.rand(1, 8, 8, 3, dtype=dtype)
        before = floats.clone()
        preprocess_images(floats, 8, MEAN, STD)
        assert torch.equal(floats, before)


@pytest.mark.parametrize(
    ("call", "words"),
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
def test_meaningless_arguments_are_named(call: Callable[[Tensor], Tensor], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call(picture(4, 5))


@pytest.mark.parametrize(
    ("change", "words"),
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
def test_the_native_module_checks_for_itself(change: dict[str, object], words: str) -> None:
    module = native()
    if module is None:
        pytest.skip(str(no_cpu()))
    given = {
        "pictures": picture(4, 5)[None],
        "bicubic": False,
        "columns_first": False,
        "mean": MEAN,
        "std": STD,
    }
    given |= {"out": torch.empty(1, 3, 8, 8), "num_threads": 1, "isa": "portable"} | change
    with pytest.raises(ValueError, match=words):
        module.preprocess(**given)


def test_registered_ops_pass_opcheck() -> None:
    frame = picture(6, 9)
    for op in (torch.ops.sam2_fast.preprocess_images, torch.ops.sam2_fast.preprocess_frame):
        given = frame[None] if op is torch.ops.sam2_fast.preprocess_images else frame
        torch.library.opcheck(op, (given, 8, list(MEAN), list(STD)))
    torch.library.opcheck(torch.ops.sam2_fast.resize_bicubic, (frame, 8))


def test_fake_tensors_never_reach_native_code() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        frame = torch.empty(6, 9, 3, dtype=torch.uint8)
        assert preprocess_images(frame[None], 8, MEAN, STD).shape == (1, 3, 8, 8)
        assert preprocess_frame(frame, 8, MEAN, STD).dtype == torch.float32
        assert resize_bicubic(frame, 8).shape == (8, 8, 3)


def of_preprocess_images(dtype: torch.dtype) -> cases.Case:
    tensors = tuple(
        (torch.rand(1, 20, 24, 3, generator=torch.Generator().manual_seed(s)) * 255).byte()
        for s in range(2)
    )
    example, other = (t if dtype == torch.uint8 else t.to(dtype) / 255 for t in tensors)

    def exact(images: Tensor) -> Tensor:
        wide = images.permute(0, 3, 1, 2).double() / (255 if dtype == torch.uint8 else 1)
        wide = F.interpolate(wide, (16, 16), mode="bilinear", antialias=True)
        return (wide - torch.tensor(MEAN).double()[:, None, None]) / torch.tensor(STD).double()[
            :, None, None
        ]

    return cases.Case(
        lambda images, **how: preprocess_images(images, 16, MEAN, STD, **how),
        (example,),
        (other,),
        exact,
    )


def of_frames(run: Callable[..., Any]) -> cases.Case:
    frames = (
        (torch.rand(20, 24, 3, generator=torch.Generator().manual_seed(s)) * 255).byte()
        for s in range(2)
    )
    return cases.Case(run, (next(frames),), (next(frames),))


RECORDED: dict[str, Callable[[], cases.Case]] = {
    "preprocess_images, bytes": lambda: of_preprocess_images(torch.uint8),
    "preprocess_images, floats": lambda: of_preprocess_images(torch.float32),
}
FIXED_BY_VALUES: dict[str, Callable[[], cases.Case]] = {
    "preprocess_frame": lambda: of_frames(
        lambda frame, **how: preprocess_frame(frame, 16, MEAN, STD, **how)
    ),
    "resize_bicubic": lambda: of_frames(lambda frame, **how: resize_bicubic(frame, 16, **how)),
}
