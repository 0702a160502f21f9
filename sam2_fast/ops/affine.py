"""A multiplication and an addition for each channel: the template of an op.

docs/adding_a_kernel.md walks through this file and those that belong to it.
"""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor

from sam2_fast.ops.core.native import native
from sam2_fast.ops.core.op import Backend, Op
from sam2_fast.ops.core.requirements import no_grad, on_one, plain, stored_in
from sam2_fast.proving.rules import FEW, Call, Rule

__all__ = ["affine"]


def affine(x: Tensor, weight: Tensor, bias: Tensor, *, backend: str = "auto") -> Tensor:
    """x * weight + bias, as a batch normalisation whose statistics are folded into its parameters.

    x: [..., C], float32, bfloat16 or float16; weight, bias: [C] float32. backend: "auto", "cuda",
    "triton", "cpu" or "torch". Returns [..., C] in the dtype of x, computed in float32 and rounded
    once. Raises ValueError for shapes and dtypes that do not fit, BackendError where the named
    backend cannot run.
    """
    if x.ndim == 0:
        raise ValueError("x: expected shape [..., C], got a tensor without dimensions")
    channels = x.shape[-1:]
    for name, vector in (("weight", weight), ("bias", bias)):
        if vector.shape != channels or vector.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"{name}: expected [{', '.join(map(str, channels))}] float32 for x of shape "
                f"{tuple(x.shape)}, got {tuple(vector.shape)} {vector.dtype}"
            )
    return _OP(backend, x, weight, bias)


def affine_reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The definition, in torch."""
    return (x.to(weight.dtype) * weight + bias).to(x.dtype)


def _run_native(x: Tensor, weight: Tensor, bias: Tensor, isa: str | None = None) -> Tensor:
    """On a CPU or with CUDA. isa: a narrower instruction set than the processor's, for tests."""
    module = native()
    assert module is not None
    given = _as_matrix(x), weight.detach().contiguous(), bias.detach().contiguous()
    out = torch.empty_like(given[0])
    module.affine(*given, out, torch.get_num_threads(), isa or module.cpu_isa())
    return out.view(x.shape)


def _run_triton(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    from sam2_fast.kernels.affine import affine as launch

    given = _as_matrix(x), weight.detach().contiguous(), bias.detach().contiguous()
    found: Tensor = launch(*given)
    return found.view(x.shape)


def _as_matrix(x: Tensor) -> Tensor:
    """[..., C] -> [rows, C], contiguous."""
    return x.detach().contiguous().view(x.shape[:-1].numel(), x.shape[-1])


def _result(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _configuration(x: Tensor, weight: Tensor, bias: Tensor) -> Hashable:
    return x.shape[-1], x.dtype, weight.dtype


def _sample(call: Call) -> Call:
    x, *rest = call.arguments
    return Call((x.reshape(-1, x.shape[-1])[:FEW], *rest), call.named)


_ANY = stored_in(torch.float32, torch.bfloat16, torch.float16)
_OP = Op(
    "affine",
    schema="(Tensor x, Tensor weight, Tensor bias) -> Tensor",
    reference=affine_reference,
    result=_result,
    backends=(
        Backend("cuda", _run_native, (on_one("cuda"), plain, no_grad, stored_in(torch.float32))),
        Backend("triton", _run_triton, (on_one("cuda"), plain, no_grad, _ANY), kernels=("affine",)),
        Backend("cpu", _run_native, (on_one("cpu"), plain, no_grad, _ANY)),
    ),
    rule=Rule(_configuration, _sample, float16=True),
)
