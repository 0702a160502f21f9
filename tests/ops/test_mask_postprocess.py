"""Counts, boxes and run lengths of masks: every instruction set gives the integers of the
definition.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_fast.io.rle import compress_rle, decode_rle
from sam2_fast.masks import boxes, stability_score
from sam2_fast.ops.core.registry import BackendError
from sam2_fast.ops.mask_postprocess import (
    Judged,
    _native_postprocess,
    interpolate,
    mask_postprocess,
    mask_postprocess_reference,
)

SHAPES = [
    ((8, 8), (20, 30), (20, 30), (0, 0)),
    ((16, 12), (37, 9), (50, 40), (3, 17)),
    ((5, 7), (5, 7), (5, 7), (0, 0)),
    ((64, 64), (200, 300), (220, 333), (20, 33)),
    ((9, 9), (4, 3), (4, 3), (0, 0)),
    ((1, 1), (3, 2), (3, 4), (0, 2)),
    ((6, 1), (1, 40), (2, 40), (1, 0)),
]


def random_logits(count: int, low: tuple[int, int], smooth: bool = True) -> Tensor:
    """Logits of `count` masks of size `low`."""
    generator = torch.Generator().manual_seed(low[0] * 100 + low[1])
    noise = torch.randn(count, *low, generator=generator)
    return F.avg_pool2d(noise[:, None], 3, 1, 1)[:, 0] * 3 if smooth else noise


def are_equal(a: Judged, b: Judged) -> bool:
    integers = all(torch.equal(x, y) for x, y in zip(a[:3], b[:3], strict=True))
    return (
        integers
        and len(a.runs) == len(b.runs)
        and all(np.array_equal(x, y) for x, y in zip(a.runs, b.runs, strict=True))
    )


@pytest.mark.proves("reference", "mask_postprocess:cpu")
@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize(("low", "size", "canvas", "origin"), SHAPES)
def test_every_instruction_set_gives_the_integers_of_the_definition(
    isa: str,
    low: tuple[int, int],
    size: tuple[int, int],
    canvas: tuple[int, int],
    origin: tuple[int, int],
    smooth: bool,
) -> None:
    logits = random_logits(5, low, smooth)
    logits[0], logits[1] = -1.0, 1.0  # an empty and a full mask
    arguments = (logits, size, 0.1, 0.5, canvas, origin)
    output = _native_postprocess(*arguments, isa=isa)
    assert are_equal(output, mask_postprocess_reference(*arguments))


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_runs_decode_to_the_mask_and_compress_like_pycocotools(backend: str) -> None:
    from pycocotools import mask as coco

    logits = random_logits(6, (24, 24))
    output = mask_postprocess(logits, (100, 70), 0.0, 1.0, backend=backend)
    masks = interpolate(logits, (100, 70)) > 0
    for mask, runs in zip(masks.numpy(), output.runs, strict=True):
        rle = {"size": [100, 70], "counts": runs}
        assert np.array_equal(decode_rle(rle), mask)
        official = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert compress_rle(rle)["counts"] == official["counts"].decode()


@pytest.mark.parametrize(
    ("low", "size"), [((32, 32), (90, 130)), ((16, 16), (16, 16)), ((40, 30), (13, 11))]
)
def test_interpolation_errs_at_most_as_much_as_torch(
    low: tuple[int, int], size: tuple[int, int]
) -> None:
    logits = random_logits(3, low, smooth=False)
    reference = F.interpolate(logits[:, None], size=size, mode="bilinear", align_corners=False)
    exact = F.interpolate(
        logits[:, None].double(), size=size, mode="bilinear", align_corners=False
    )[:, 0]
    outputs = (interpolate(logits, size), reference[:, 0])
    error, torch_error = ((x - exact).square().mean().sqrt() for x in outputs)
    assert error <= max(torch_error, torch.finfo(torch.float32).eps * exact.abs().max() / 2)


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_counts_and_boxes_are_those_of_the_masks(backend: str) -> None:
    logits = random_logits(8, (20, 20))
    full = interpolate(logits, (64, 48))
    output = mask_postprocess(logits, (64, 48), 0.2, 0.7, backend=backend)
    assert torch.equal(output.inner / output.outer, stability_score(full, 0.2, 0.7))
    assert torch.equal(output.boxes, boxes(full > 0.2))


def test_nan_is_outside_of_every_mask(isa: str) -> None:
    logits = torch.full((1, 4, 4), torch.nan)
    output = _native_postprocess(logits, (8, 8), 0.0, 1.0, (8, 8), (0, 0), isa=isa)
    assert output.inner.item() == output.outer.item() == 0 and output.runs[0].tolist() == [64]


def test_results_do_not_depend_on_threads_or_strides() -> None:
    logits = random_logits(7, (16, 16))
    default_threads = torch.get_num_threads()
    expected = mask_postprocess(logits, (50, 60), 0.0, 1.0)
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert are_equal(mask_postprocess(logits, (50, 60), 0.0, 1.0), expected)
    finally:
        torch.set_num_threads(default_threads)
    strided = logits.transpose(1, 2).contiguous().transpose(1, 2)
    assert are_equal(mask_postprocess(strided, (50, 60), 0.0, 1.0), expected)


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_no_masks_give_empty_results(backend: str) -> None:
    output = mask_postprocess(torch.zeros(0, 4, 4), (8, 8), 0.0, 1.0, backend=backend)
    assert output.boxes.shape == (0, 4) and output.runs == []


def test_float64_is_refused_by_the_kernel_and_auto_runs_the_reference() -> None:
    with pytest.raises(
        BackendError, match=r"mask_postprocess: cpu refuses: .*float64.*Would run: torch"
    ):
        mask_postprocess(torch.zeros(1, 4, 4).double(), (8, 8), 0.0, 1.0, backend="cpu")
    output = mask_postprocess(torch.ones(1, 4, 4).double(), (8, 8), 0.0, 1.0)
    assert output.runs[0].tolist() == [0, 64]


@pytest.mark.parametrize(
    ("shape", "size", "canvas", "origin", "message"),
    [
        ((4, 4), (8, 8), None, (0, 0), "logits, size: expected"),
        ((1, 4, 0), (8, 8), None, (0, 0), "logits, size: expected"),
        ((1, 4, 4), (0, 8), None, (0, 0), "logits, size: expected"),
        ((1, 4, 4), (8, 8), (8, 8), (1, 0), "canvas: expected room"),
        ((1, 4, 4), (8, 8), (8, 8), (0, -1), "canvas: expected room"),
        ((1, 4, 4), (8, 8), (2**16, 2**16), (0, 0), "fewer than 2"),
    ],
)
def test_sizes_that_do_not_fit_are_named(
    shape: tuple[int, ...],
    size: tuple[int, int],
    canvas: tuple[int, int] | None,
    origin: tuple[int, int],
    message: str,
) -> None:
    with pytest.raises(ValueError, match=message):
        mask_postprocess(torch.zeros(shape), size, 0.0, 1.0, canvas=canvas, origin=origin)


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("chosen", [[], [1], [0, 2, 3]], ids=str)
def test_runs_are_those_of_the_masks_that_are_kept(backend: str, chosen: list[int]) -> None:
    logits = random_logits(4, (20, 16), True)
    all_masks = mask_postprocess(logits, (50, 60), 0.0, 1.0, backend=backend)
    flags = torch.zeros(4, dtype=torch.bool)
    flags[chosen] = True

    def keep(*statistics: torch.Tensor) -> torch.Tensor:
        assert all(map(torch.equal, statistics, all_masks[:3]))
        return flags

    output = mask_postprocess(logits, (50, 60), 0.0, 1.0, keep=keep, backend=backend)
    assert output.kept is not None and output.kept.tolist() == chosen
    assert are_equal(output, all_masks._replace(runs=[all_masks.runs[i] for i in chosen]))


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_masks_that_are_not_selected_count_as_empty(backend: str) -> None:
    logits = random_logits(3, (20, 16), True)
    which = torch.tensor([True, False, True])
    output = mask_postprocess(logits, (50, 60), 0.0, 1.0, which=which, backend=backend)
    logits[1] = -100.0
    assert are_equal(output, mask_postprocess(logits, (50, 60), 0.0, 1.0, backend=backend))
    with pytest.raises(ValueError, match="which: expected a bool for each of 3 masks"):
        mask_postprocess(logits, (50, 60), 0.0, 1.0, which=which[:2], backend=backend)
