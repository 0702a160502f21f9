"""Scale and shift by channel, as one op. A template for new ops: docs/adding_a_kernel.md."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from sam2_fast.ops.core.cache import derive, for_cpu, for_gpu
from sam2_fast.ops.core.native import native
from sam2_fast.ops.core.op import Backend, Op
from sam2_fast.ops.core.requirements import FLOATS, fits, no_grad, on_one, plain, stored_in
from sam2_fast.ops.core.weights import Weights, tensor
from sam2_fast.proving.rules import Call, Rule

__all__ = ["AffineWeights", "affine"]

_PROVED_ROWS = 100  # one whole program of the Triton kernel and a part of a second one


@dataclass(frozen=True, eq=False)
class AffineWeights(Weights, root=True):
    """Scale and shift of C channels."""

    weight: Tensor = tensor("C")
    bias: Tensor = tensor("C")


def affine(x: Tensor, weights: AffineWeights, *, backend: str = "auto") -> Tensor:
    """x * weight + bias by channel, computed in float32 or wider.

    x: [..., C]. backend: "auto", "triton", "cpu" or "torch". Returns the shape and dtype of x.
    Raises ValueError for shapes that do not fit, BackendError if the named backend cannot run.
    """
    channels = weights.weight.shape[0]
    if x.ndim < 1 or x.shape[-1] != channels:
        raise ValueError(f"x: expected shape [..., {channels}], got {tuple(x.shape)}")
    result: Tensor = _OP(backend, x, weights)
    return result


def affine_reference(x: Tensor, weights: AffineWeights) -> Tensor:
    """The definition, in torch."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return (x.to(dtype) * weights.weight.to(dtype) + weights.bias.to(dtype)).to(x.dtype)


def _native_affine(x: Tensor, weights: AffineWeights, isa: str | None = None) -> Tensor:
    """Run the CPU kernel. isa: an older instruction set than this CPU's, for tests."""
    module = native()
    assert module is not None
    prepared = derive(weights, "cpu", lambda: module.AffineWeights(for_cpu(weights, torch.float32)))
    rows = x.detach().reshape(-1, x.shape[-1]).contiguous()
    out = rows.new_empty(rows.shape)
    module.affine(rows, prepared, out, torch.get_num_threads(), isa or module.cpu_isa())
    return out.view(x.shape)


def _triton_affine(x: Tensor, weights: AffineWeights) -> Tensor:
    from sam2_fast.kernels.affine import affine as kernel

    w = derive(weights, "triton", lambda: for_gpu(weights, torch.float32))
    rows = x.detach().reshape(-1, x.shape[-1]).contiguous()
    return kernel(rows, w.weight, w.bias).view(x.shape)


def _refuses(x: Tensor, weights: AffineWeights) -> str | None:
    return "x is empty; at least one element is required" if x.numel() == 0 else None


def _result(x: Tensor, weights: list[Tensor]) -> Tensor:
    return x.new_empty(x.shape)


def _configuration(x: Tensor, weights: AffineWeights) -> Hashable:
    return x.shape[-1], x.dtype, weights.weight.dtype, weights.bias.dtype


def _sample(call: Call) -> Call:
    x, weights = call.arguments
    return Call((x.reshape(-1, x.shape[-1])[:_PROVED_ROWS], weights), {})


_OP = Op(
    "affine",
    schema="(Tensor x, Tensor[] weights) -> Tensor",
    weights=AffineWeights,
    reference=affine_reference,
    result=_result,
    backends=(
        Backend(
            "triton",
            _triton_affine,
            requires=(on_one("cuda"), plain, no_grad, stored_in(*FLOATS), fits(_refuses)),
            kernels=("affine",),
        ),
        Backend(
            "cpu",
            _native_affine,
            requires=(on_one("cpu"), plain, no_grad, stored_in(*FLOATS), fits(_refuses)),
        ),
    ),
    rule=Rule(_configuration, _sample),
)
