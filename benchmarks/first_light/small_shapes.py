"""Runs every op with a GPU kernel once at small, odd shapes, for compute-sanitizer.

    python -m benchmarks.first_light.small_shapes [cuda | cpu | fake]

This checks memory accesses; the values of most results are tested elsewhere. A benchmark that
defines `small_shapes(device, dtype, backend)` is called too, so that a new op needs no change here.
"""

from __future__ import annotations

import math
import sys
from contextlib import ExitStack
from importlib import import_module
from typing import TypeVar

import torch
from torch import Tensor

from benchmarks.run import modules_with
from sam2_fast.ops import (
    HieraBlockWeights,
    MaskDecoderWeights,
    Memories,
    MemoryAttentionWeights,
    MemoryEncoderWeights,
    connected_components,
    hiera_block,
    mask_decoder,
    mask_postprocess,
    memory_attention,
    memory_encoder,
    nms,
    preprocess_frame,
    preprocess_images,
    rope_attention,
    rope_table,
    small_components,
    window_attention,
)
from sam2_fast.ops.connected_components import connected_components_reference
from sam2_fast.ops.core.layout import Leaf
from sam2_fast.ops.core.weights import Weights
from sam2_fast.proving import off

BACKENDS = {"cuda": ("cuda", "triton"), "cpu": ("cpu", "torch"), "fake": ("torch", "triton")}
"""Mode -> backend of connected components, backend of the other ops."""
W = TypeVar("W", bound=Weights)


class SmallShapes:
    """Runs the ops with inputs on one device."""

    def __init__(self, mode: str) -> None:
        self._components, self._backend = BACKENDS[mode]
        self._device = torch.device("cuda" if mode == "cuda" else "cpu")
        self._dtype = torch.float32 if mode == "cpu" else torch.bfloat16

    def run(self) -> None:
        """Run all ops, one after the other."""
        self.components()
        self.boxes_and_pictures()
        self.attention()
        self.blocks()
        self.decoder()
        self.memory()
        self.defined_by_benchmarks()

    def defined_by_benchmarks(self) -> None:
        """Run the functions `small_shapes` of benchmarks."""
        for name in modules_with("small_shapes"):
            module = import_module(f"benchmarks.{name}")
            module.small_shapes(self._device, self._dtype, self._backend)

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(*shape).to(self._device, self._dtype)

    def _weights(self, kind: type[W], count: int = 1, **sizes: int) -> W:
        def weight(leaf: Leaf, shape: tuple[int, ...]) -> Tensor:
            return self._random(*shape) / math.prod(shape[1:]) ** 0.5

        return kind.build(weight, count=count, **sizes)

    def components(self) -> None:
        """Run labels, areas and small components."""
        for shape in ((1, 1, 1), (3, 33, 65), (2, 64, 64), (1, 97, 40), (5, 1, 70), (0, 4, 4)):
            for density in (0.3, 0.6, 1.0):
                masks = (torch.rand(shape) < density).to(self._device)
                expected = connected_components_reference(masks)
                labels = connected_components(masks, backend=self._components)
                assert all(torch.equal(a, b) for a, b in zip(labels, expected, strict=True)), shape
                for area in (1, 8, 16):
                    small = (expected[1] > 0) & (expected[1] <= area)
                    assert torch.equal(
                        small_components(masks, area, backend=self._components), small
                    ), (shape, area)
                if self._backend == "triton":
                    connected_components(masks, backend="triton")

    def boxes_and_pictures(self) -> None:
        """Run postprocessing of masks, non-maximum suppression, and preprocessing of pictures."""
        logits = torch.randn(3, 9, 11).to(self._device)
        options = {"canvas": (40, 30), "origin": (3, 5), "backend": self._backend}
        mask_postprocess(logits, (33, 20), 0.0, 0.5, **options)
        boxes = torch.rand(99, 4).to(self._device).sort(1).values
        nms(boxes, torch.rand(99).to(self._device), 0.5, backend=self._backend)
        picture = torch.randint(0, 256, (37, 50, 3), dtype=torch.uint8).to(self._device)
        statistics = (0.5,) * 3, (0.2,) * 3
        preprocess_frame(picture, 24, *statistics, backend=self._backend)
        preprocess_images(picture[None], 24, *statistics, backend=self._backend)

    def attention(self) -> None:
        """Run attention with rotary positions and windowed attention."""
        q = self._random(2, 64, 64)
        k = self._random(2, 133, 64)
        v = self._random(2, 133, 16)
        rope_attention(q, k, v, rope_table(64, 8).to(self._device), 5, backend=self._backend)
        for window, pool in ((8, False), (14, False), (4, True), (0, True)):
            qkv = self._random(1, 16, 16, 3 * 112)
            pad = self._random(3 * 112)
            window_attention(qkv, pad, 2, window, pool, backend=self._backend)

    def blocks(self) -> None:
        """Run Hiera blocks, plain and pooled, with MLPs of one launch and of three."""
        for dim, out, pool in ((48, 48, False), (48, 96, True), (192, 192, False)):
            weights = self._weights(HieraBlockWeights, int(pool), C=dim, D=out, F=4 * out)
            hiera_block(self._random(1, 16, 12, dim), weights, 2, 4, pool, backend=self._backend)

    def decoder(self) -> None:
        """Run the mask decoder with eight tokens."""
        weights = self._weights(MaskDecoderWeights, 3, C=256, F=64, H=64, K=4)
        maps = self._random(1, 4, 4, 256), self._random(1, 8, 8, 64), self._random(1, 16, 16, 32)
        prompts = self._random(2, 8, 256)
        mask_decoder(
            *maps, self._random(16, 256), prompts, None, weights, 8, 3, 1, backend=self._backend
        )

    def memory(self) -> None:
        """Run the memory encoder, and memory attention with different numbers of maps."""
        widths = {"K1": 4, "K2": 16, "K3": 64, "K4": 256, "C": 256, "F": 64, "M": 64}
        weights = self._weights(MemoryEncoderWeights, **widths)
        low = self._random(1, 3, 4, 256)
        logits = self._random(2, 12, 16)
        memory_encoder(low, logits, weights, False, backend=self._backend)
        dim = 64
        m = 16  # channels of a memory
        maps = [self._random(25, m) for _ in range(3)]
        memories = Memories(
            maps,
            [0, 1, 2, 0],
            [0, 1, 2, 1],
            [0, 3, 4],
            self._random(5, m),
            self._random(5, m),
            [0, 1, 5],
        )
        table = rope_table(dim, 5).to(self._device)
        layers = self._weights(MemoryAttentionWeights, C=dim, M=m, F=32)
        x = self._random(1, 25, dim)
        arguments = (x, layers, table, memories, self._random(3, m), self._random(25, m))
        memory_attention(*arguments, backend=self._backend)


def main(mode: str) -> None:
    """Run all ops. mode: "cuda", or "cpu" and "fake" for rehearsals."""
    torch.manual_seed(0)
    with ExitStack() as stack:
        stack.enter_context(off())  # do not prove kernels in this process
        if mode == "fake":
            from tools.gpu.fake import FakeGpu

            stack.enter_context(FakeGpu(90))
        SmallShapes(mode).run()
    if mode == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "cuda")
