"""Non-maximum suppression: every backend keeps the boxes that the greedy rule keeps."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch

from sam2_fast.ops.core.native import no_triton
from sam2_fast.ops.core.registry import BackendError
from sam2_fast.ops.nms import batched_nms, nms
from tests.ops import cases
from tests.ops.triton_tools import compiled, interpret


def greedy(boxes: np.ndarray, scores: np.ndarray, idxs: np.ndarray, threshold: float) -> list[int]:
    """The kept boxes by the definition, one box at a time, in float32."""
    kept: list[int] = []
    for i in np.argsort(-scores, kind="stable"):
        for j in kept:
            top_left = np.maximum(boxes[i, :2], boxes[j, :2])
            bottom_right = np.minimum(boxes[i, 2:], boxes[j, 2:])
            intersection = np.prod(np.maximum(bottom_right - top_left, np.float32(0)))
            areas = [np.prod(boxes[k, 2:] - boxes[k, :2]) for k in (i, j)]
            if (
                idxs[i] == idxs[j]
                and intersection > 0
                and intersection / (areas[0] + areas[1] - intersection) > threshold
            ):
                break
        else:
            kept.append(int(i))
    return kept


@pytest.mark.parametrize("count", [0, 1, 7, 300])
@pytest.mark.parametrize("block", [2048, 64])
def test_suppression_follows_the_greedy_rule(
    count: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["sam2_fast.ops.nms"], "BLOCK", block)
    generator = np.random.default_rng(count)
    corners = generator.integers(0, 30, (count, 2)).astype(np.float32)
    sizes = generator.integers(0, 30, (count, 2))
    boxes = np.concatenate([corners, corners + sizes], 1).astype(np.float32)
    scores = generator.integers(0, 9, count).astype(np.float32)  # with many ties
    idxs = generator.integers(0, 2, count)
    for threshold in (0.0, 0.3, 0.7, 1.0):
        kept = batched_nms(*(torch.from_numpy(a) for a in (boxes, scores, idxs)), threshold)
        assert kept.tolist() == greedy(boxes, scores, idxs, threshold)


def test_every_second_box_of_a_long_chain_is_kept() -> None:
    """Each box overlaps only its neighbours."""
    x = torch.arange(500.0)[:, None] * 6
    boxes = torch.cat([x, torch.zeros_like(x), x + 10, torch.full_like(x, 10)], 1)
    kept = batched_nms(boxes, torch.arange(500.0, 0, -1), torch.zeros(500), 0.2)
    assert kept.tolist() == list(range(0, 500, 2))
    with pytest.raises(ValueError, match="boxes, scores, idxs"):
        batched_nms(boxes, torch.ones(3), torch.zeros(500), 0.2)


def overlapping_boxes(
    count: int, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Boxes, many of which overlap, their scores with ties, their categories, and whether each is
    alive.
    """
    generator = torch.Generator().manual_seed(seed)
    corners = torch.randint(0, 3000, (count, 2), generator=generator)
    boxes = torch.cat(
        [corners, corners + torch.randint(0, 1500, (count, 2), generator=generator)], 1
    )
    scores, idxs = (torch.randint(0, n, (count,), generator=generator) for n in (20, 2))
    return boxes, scores.float(), idxs, torch.rand(count, generator=generator) < 0.8


@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_boxes_that_are_not_alive_are_neither_kept_nor_suppress_others(backend: str) -> None:
    boxes, scores, idxs, alive = overlapping_boxes(200)
    kept = nms(boxes, scores, 0.3, idxs, alive, backend=backend)
    expected = alive.nonzero()[:, 0][batched_nms(boxes[alive], scores[alive], idxs[alive], 0.3)]
    assert set(kept.nonzero()[:, 0].tolist()) == set(expected.tolist())
    assert 0 < int(kept.sum()) < int(alive.sum())
    with pytest.raises(ValueError, match="boxes, scores, idxs, alive: expected shapes"):
        nms(boxes, scores, 0.3, idxs, alive[1:])


INTERPRETED = """
from sam2_fast.kernels import nms as kernels
from sam2_fast.ops.nms import nms_reference
from tests.ops.test_nms import overlapping_boxes

for count in (0, 1, 31, 32, 33, 150):
    for threshold in (0.0, 0.3, 0.7):
        boxes, scores, idxs, alive = overlapping_boxes(count, count)
        order = scores.argsort(descending=True, stable=True)
        inputs = boxes[order].float(), idxs[order], alive[order]
        kept = kernels.nms(*inputs, threshold)
        assert torch.equal(kept, nms_reference(*inputs, threshold)), (count, threshold)
"""


@pytest.mark.proves("interpreted", "nms:triton")
def test_the_triton_kernels_keep_the_same_boxes_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    interpret(INTERPRETED)


@pytest.mark.proves("compiled", "nms:triton")
@pytest.mark.parametrize("capability", [80, 90, 120])
def test_compiles_without_fused_multiply_adds(capability: int) -> None:
    pytest.importorskip("triton")
    from sam2_fast.kernels import nms as kernels

    types = {"boxes": "*fp32", "idxs": "*i64", "overlaps": "*i32", "alive": "*u8", "kept": "*u8"}
    types |= {"count": "i32", "words": "i32", "threshold": "fp32"}
    code = compiled(
        kernels.overlap_kernel,
        types,
        {"ROWS": kernels.ROWS, "WORDS": kernels.WORDS},
        capability,
        num_warps=4,
        enable_fp_fusion=False,
    ).asm["ptx"]
    assert "div.rn.f32" in code and "fma." not in code
    assert compiled(kernels.greedy_kernel, types, {"WIDE": 128}, capability, num_warps=1).asm["ptx"]


def test_a_refusal_without_a_gpu_names_the_next_backend() -> None:
    with pytest.raises(BackendError, match=r"nms: triton refuses: .*Would run: torch"):
        nms(torch.zeros(1, 4), torch.zeros(1), 0.5, backend="triton")


@pytest.mark.proves("gpu test", "nms:triton")
@pytest.mark.gpu
@pytest.mark.parametrize("count", [0, 1, 33, 3072, 20000])
def test_the_triton_kernels_keep_the_same_boxes_on_a_gpu(count: int) -> None:
    if reason := no_triton():
        pytest.skip(reason)
    boxes, scores, idxs, alive = overlapping_boxes(count)
    on_gpu = [x.cuda() for x in (boxes, scores, idxs, alive)]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        kept = nms(on_gpu[0], on_gpu[1], 0.5, *on_gpu[2:], backend="triton")
    stream.synchronize()
    assert torch.equal(kept.cpu(), nms(boxes, scores, 0.5, idxs, alive, backend="torch"))


def nms_case() -> cases.Case:
    box = torch.tensor([0.0, 0.0, 10.0, 10.0])
    disjoint = torch.arange(6.0)[:, None] * 100 + box
    overlapping = torch.arange(6.0)[:, None] * 3 + box
    return cases.Case(
        lambda boxes, scores, **kwargs: nms(boxes, scores, 0.3, **kwargs),
        (disjoint, torch.rand(6)),
        (overlapping, 1 - torch.arange(6.0) / 10),
    )


FIXED_BY_VALUES: dict[str, Callable[[], cases.Case]] = {"nms": nms_case}
