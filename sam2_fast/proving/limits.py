"""Upper limits of a machine: the rates of a large matrix product and of a copy."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from sam2_fast.proving.only_torch import only_torch
from sam2_fast.proving.rules import Call, tensors_in
from sam2_fast.proving.timing import timed

_COPY_BYTES = {"cpu": 64 << 20, "cuda": 512 << 20}
_MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}
_LONGEST_PRODUCT_MS = 1000.0
"""The side of the matrices is doubled as long as one product is expected to stay below this."""

Product = Callable[[Tensor, Tensor], Tensor]


class Limits:
    """Rates of a device: the best of all measurements."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        """Measure both rates, which takes a few seconds."""
        self._device = device
        self._dtype = dtype
        self.gflops = self.gbytes = 0.0
        self.measure()

    def measure(self) -> None:
        """Measure again: another program may have slowed down the machine before."""
        self.gflops = max(self.gflops, matrix_rate(self._device, self._dtype))
        self.gbytes = max(self.gbytes, copy_rate(self._device))

    def milliseconds(self, flop: int, moved: int) -> float:
        """The least time for these numbers of floating-point operations and bytes."""
        return max(flop / self.gflops, moved / self.gbytes) / 1e6


def _least(function: Callable[[], Any], device: torch.device, repeats: int = 5) -> float:
    return min(timed(function, device, repeats))


def matrix_rate(device: torch.device, dtype: torch.dtype = torch.float32) -> float:
    """GFLOP/s of a large matrix product.

    On a CPU it is the better one of torch's product and oneDNN's, which torch's compiler calls:
    torch's uses another library, which on some processors has half the rate.
    """
    products: list[Product] = [torch.mm]
    if device.type == "cpu" and _onednn_computes(dtype):
        pointwise = torch.ops.mkldnn._linear_pointwise
        products.append(lambda a, b: pointwise(a, b, None, "none", [], ""))
    return max(_product_rate(product, device, dtype) for product in products)


def _onednn_computes(dtype: torch.dtype) -> bool:
    """Whether oneDNN has matrix products of a dtype on this processor."""
    if not torch._C._has_mkldnn:
        return False
    if dtype is torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if dtype is torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return dtype is torch.float32


def _product_rate(product: Product, device: torch.device, dtype: torch.dtype) -> float:
    """GFLOP/s of the product of two large matrices.

    A processor that has no instructions for a dtype can be a hundred times slower, and gets smaller
    matrices.
    """
    largest = _MATRIX_SIDE[device.type]
    side = min(largest, 256) if device.type == "cpu" else largest
    random = torch.Generator(device).manual_seed(0)
    while True:
        a, b = (torch.randn(side, side, device=device, generator=random) for _ in range(2))
        milliseconds = _least(partial(product, a.to(dtype), b.to(dtype)), device)
        if side == largest or 8 * milliseconds > _LONGEST_PRODUCT_MS:
            return 2 * side**3 / milliseconds / 1e6
        side *= 2


def copy_rate(device: torch.device) -> float:
    """GB/s of a large copy; counts bytes read and bytes written."""
    size = _COPY_BYTES[device.type]
    source, target = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
    return 2 * size / _least(lambda: target.copy_(source), device) / 1e6


def operations(reference: Callable[..., Any], call: Call) -> int:
    """Floating-point operations of the products and convolutions in the definition of an op."""
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

    def attention(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
        return sdpa_flop_count(q, k, v)

    counter = FlopCounterMode(display=False, custom_mapping={flash: attention})
    with torch.no_grad(), only_torch(), counter:
        reference(*call.arguments, **call.named)
    return int(counter.get_total_flops())


def traffic(call: Call, result: Any) -> int:
    """Bytes of all inputs and outputs, each once: the minimum of memory traffic."""
    return sum(x.numel() * x.element_size() for x in tensors_in((tuple(call), result)))
