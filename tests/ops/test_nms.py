"""Suppression of boxes: the greedy rule, on every backend the same boxes."""

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
    """The definition, one box at a time, in float32."""
    kept: list[int] = []
    for i in np.argsort(-scores, kind="stable"):
        for j in kept:
            low, high = (
                np.maximum(boxes[i, :2], boxes[j, :2]),
                np.minimum(boxes[i, 2:], boxes[j, 2:]),
            )
            common = np.prod(np.maximum(high - low, np.float32(0)))
            areas = [np.prod(boxes[k, 2:] - boxes[k, :2]) for k in (i, j)]
            if (
                idxs[i] == idxs[j]
                and common > 0
                and common / (areas[0] + areas[1] - common) > threshold
            ):
                break
        else:
            kept.append(int(i))
    return kept


@pytest.mark.parametrize("count", [0, 1, 7, 300])
@pytest.mark.parametrize("block", [2048, 64])
def test_suppression_is_the_greedy_one(
    count: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["sam2_fast.ops.nms"], "BLOCK", block)
    generator = np.random.default_rng(count)
    corners = generator.integers(0, 30, (count, 2)).astype(np.float32)
    boxes = np.concatenate([corners, corners + generator.integers(0, 30, (count, 2))], 1).astype(
        np.float32
    )
    # Many ties.
    scores, idxs = (
        generator.integers(0, 9, count).astype(np.float32),
        generator.integers(0, 2, count),
    )
    for threshold in (0.0, 0.3, 0.7, 1.0):
        found = batched_nms(*(torch.from_numpy(a) for a in (boxes, scores, idxs)), threshold)
        assert found.tolist() == greedy(boxes, scores, idxs, threshold)


def test_a_long_chain_of_overlaps() -> None:
    """Every box overlaps the next one only: every second stays."""
    x = torch.arange(500.0)[:, None] * 6
    boxes = torch.cat([x, torch.zeros_like(x), x + 10, torch.full_like(x, 10)], 1)
    found = batched_nms(boxes, torch.arange(500.0, 0, -1), torch.zeros(500), 0.2)
    assert found.tolist() == list(range(0, 500, 2))
    with pytest.raises(ValueError, match="boxes, scores, idxs"):
        batched_nms(boxes, torch.ones(3), torch.zeros(500), 0.2)


def crowd(
    count: int, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Boxes of which many overlap, scores with ties, categories, who is alive."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.randint(0, 3000, (count, 2), generator=generator)
    boxes = torch.cat(
        [corners, corners + torch.randint(0, 1500, (count, 2), generator=generator)], 1
    )
    scores, idxs = (torch.randint(0, n, (count,), generator=generator) for n in (20, 2))
    return boxes, scores.float(), idxs, torch.rand(count, generator=generator) < 0.8


@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_who_is_not_alive_neither_stays_nor_suppresses(backend: str) -> None:
    boxes, scores, idxs, alive = crowd(200)
    found = nms(boxes, scores, 0.3, idxs, alive, backend=backend)
    rows = alive.nonzero()[:, 0]
    assert set(found.nonzero()[:, 0].tolist()) == set(
        rows[batched_nms(boxes[alive], scores[alive], idxs[alive], 0.3)].tolist()
    )
    assert 0 < int(found.sum()) < int(alive.sum())
    with pytest.raises(ValueError, match="boxes, scores, idxs, alive: expected shapes"):
        nms(boxes, scores, 0.3, idxs, alive[1:])


INTERPRETED = """
from sam2_fast.kernels import nms as kernels
from sam2_fast.ops.nms import nms_reference
from tests.ops.test_nms import crowd

for count in (0, 1, 31, 32, 33, 150):
    for threshold in (0.0, 0.3, 0.7):
        boxes, scores, idxs, alive = crowd(count, count)
        order = scores.argsort(descending=True, stable=True)
        given = boxes[order].float(), idxs[order], alive[order]
        assert torch.equal(kernels.nms(*given, threshold), nms_reference(*given, threshold)), (
            count,
            threshold,
        )
"""


@pytest.mark.proves("interpreted", "nms:triton")
def test_the_triton_kernels_keep_the_same_boxes_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    interpret(INTERPRETED)


@pytest.mark.proves("compiled", "nms:triton")
@pytest.mark.parametrize("capability", [80, 90, 120])
def test_compiles_without_fused_products(capability: int) -> None:
    pytest.importorskip("triton")
    from sam2_fast.kernels import nms as kernels

    kinds = {
        "boxes": "*fp32",
        "idxs": "*i64",
        "overlaps": "*i32",
        "alive": "*u8",
        "kept": "*u8",
        "count": "i32",
        "words": "i32",
    }
    kinds["threshold"] = "fp32"
    code = compiled(
        kernels.overlap_kernel,
        kinds,
        {"ROWS": kernels.ROWS, "WORDS": kernels.WORDS},
        capability,
        num_warps=4,
        enable_fp_fusion=False,
    ).asm["ptx"]
    assert "div.rn.f32" in code and "fma." not in code
    assert compiled(kernels.greedy_kernel, kinds, {"WIDE": 128}, capability, num_warps=1).asm["ptx"]


def test_says_why_it_refuses() -> None:
    with pytest.raises(BackendError, match=r"nms: triton refuses: .*Would run: torch"):
        nms(torch.zeros(1, 4), torch.zeros(1), 0.5, backend="triton")


@pytest.mark.proves("gpu test", "nms:triton")
@pytest.mark.gpu
@pytest.mark.parametrize("count", [0, 1, 33, 3072, 20000])
def test_the_same_boxes_on_a_gpu(count: int) -> None:
    if reason := no_triton():
        pytest.skip(reason)
    boxes, scores, idxs, alive = crowd(count)
    given = [x.cuda() for x in (boxes, scores, idxs, alive)]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = nms(given[0], given[1], 0.5, *given[2:], backend="triton")
    stream.synchronize()
    assert torch.equal(found.cpu(), nms(boxes, scores, 0.5, idxs, alive, backend="torch"))


def of_nms() -> cases.Case:
    far = torch.arange(6.0)[:, None] * 100 + torch.tensor([0.0, 0.0, 10.0, 10.0])
    # Each overlaps the next.
    chain = torch.arange(6.0)[:, None] * 3 + torch.tensor([0.0, 0.0, 10.0, 10.0])
    falling = 1 - torch.arange(6.0) / 10
    return cases.Case(
        lambda boxes, scores, **how: nms(boxes, scores, 0.3, **how),
        (far, torch.rand(6)),
        (chain, falling),
    )


FIXED_BY_VALUES: dict[str, Callable[[], cases.Case]] = {"nms": of_nms}
