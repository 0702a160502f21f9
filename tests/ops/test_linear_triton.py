"""Linear layers in Triton: errors in the interpreter, and compiled code for several GPUs."""

from __future__ import annotations

from typing import Any

import pytest

from tests.ops.triton_tools import interpret, resources

INTERPRETED = """
import torch
import torch.nn.functional as F
from sam2_fast.kernels.choices import trying
from sam2_fast.kernels.linear import (
    GELU,
    RELU,
    Layer,
    Norm,
    fold,
    linear,
    linear_with_statistics,
    row_statistics,
    normalize,
)

torch.manual_seed(0)
half = torch.float16


def rms(x, y):
    return (x.double() - y).square().mean().sqrt().item()


def check(actual, reference, exact, name):
    rounding_error = rms(exact.to(actual.dtype), exact)
    assert rms(actual, exact) <= 2 * max(rms(reference, exact), rounding_error), name


def definition(x, weight, bias, norm, activation, gamma, residual, width):
    if norm is not None:
        x = F.layer_norm(x, (x.shape[1],), norm[0], norm[1], 1e-6)
    y = F.linear(x, weight, bias)
    if activation == GELU:
        y = F.gelu(y)
    if activation == RELU:
        y = F.relu(y)
    y = y if gamma is None else y * gamma
    if width:
        y = y.unflatten(0, (-1, 2, width // 2, 2)).amax((1, 3)).flatten(0, 1)
    return y if residual is None else y + residual


cases = {  # rows, inner, outer, norm, activation, gamma, residual, width
    "plain": (70, 96, 48, False, 0, False, False, 0),
    "hidden": (33, 40, 160, True, GELU, False, False, 0),
    "odd": (5, 19, 7, True, RELU, False, True, 0),
    "pooled": (64, 48, 72, True, 0, False, False, 8),
    "scaled": (130, 128, 136, False, 0, True, True, 0),
    "one": (1, 16, 1, True, 0, False, True, 0),
}
for name, (rows, inner, outer, normed, activation, scaled, added, width) in cases.items():
    x = 2 * torch.randn(rows, inner) + 3
    norm = (1 + torch.rand(inner), torch.randn(inner))
    weight = torch.randn(outer, inner) / inner**0.5
    bias = torch.randn(outer)
    gamma = torch.rand(outer)
    residual = torch.randn(rows // 4 if width else rows, outer)
    tensors = [t.to(half) for t in (x, weight, bias, *norm, gamma, residual)]

    def arguments(dtype):
        x, weight, bias, norm_weight, norm_bias, gamma, residual = (t.to(dtype) for t in tensors)
        return (
            x,
            weight,
            bias,
            (norm_weight, norm_bias) if normed else None,
            activation,
            gamma if scaled else None,
            residual if added else None,
            width,
        )

    exact = definition(*arguments(torch.float64))
    reference = definition(*arguments(half))
    x, weight, bias, norm, activation, gamma, residual, width = arguments(half)
    layer = fold(weight, bias, Norm(*norm, 1e-6)) if normed else Layer(weight, bias)
    options = dict(activation=activation, gamma=gamma, residual=residual, width=width)
    for library in (False, True):  # the default form; the last form, which may be a library's
        with trying() as trial:
            statistics = row_statistics(x) if normed else None
            linear(x, layer, statistics, **options)
        forms = {k: choice[1][-1] if library else choice[0] for k, choice in trial.choices.items()}
        with trying(forms):
            actual, out_statistics = linear_with_statistics(x, layer, statistics, **options)
        check(actual, reference, exact, (name, library))
        groups = actual.double().split(out_statistics.group_size, 1)
        means = torch.stack([g.mean(1) for g in groups], 1)
        sums = torch.stack([(g - g.mean(1, keepdim=True)).square().sum(1) for g in groups], 1)
        actual_means, actual_sums = out_statistics.values.double().unbind(2)
        assert torch.allclose(actual_means, means, atol=1e-5), name
        assert torch.allclose(actual_sums, sums, rtol=1e-4, atol=1e-5), name
    if normed:
        in_float64 = [t.double() for t in norm]
        check(
            normalize(x, layer.norm, half),
            F.layer_norm(x, (inner,), *norm, 1e-6),
            F.layer_norm(x.double(), (inner,), *in_float64, 1e-6),
            name,
        )
        # The row statistics of one layer are used by the norm of the next.
        first = Layer(torch.randn(inner, inner).to(half) / 8, torch.randn(inner).to(half))
        y, statistics = linear_with_statistics(x, first)
        options["residual"] = residual
        actual = linear(y, layer, statistics, **options)
        reference = definition(y, *arguments(half)[1:])
        exact = definition(y.double(), *arguments(torch.float64)[1:])
        check(actual, reference, exact, ("chain", name))
"""
# Layers of the trunks and of memory attention at 1024 pixels.
LAYERS: dict[str, dict[str, Any]] = {
    "tiny 1, q k v": {"inner": 96, "outer": 288, "parts": 1},
    "tiny 1, projection": {"inner": 96, "outer": 96, "add": True},
    "base+ 1, hidden": {"inner": 112, "outer": 448, "parts": 1, "activation": 1},
    "base+ 1, output": {"inner": 448, "outer": 112, "add": True},
    "large 2, shortcut": {"inner": 144, "outer": 288, "parts": 1, "pool": True},
    "large 3, q k v": {"inner": 576, "outer": 1728, "parts": 1},
    "large 3, output": {"inner": 2304, "outer": 576, "add": True},
    "large 3, projection": {"inner": 576, "outer": 576, "add": True, "measure": True},
    "large 3, hidden": {"inner": 576, "outer": 2304, "parts": 5, "activation": 1},
    "large 4, hidden": {"inner": 1152, "outer": 4608, "parts": 9, "activation": 1, "rows": 1024},
    "memory fuser, output": {"inner": 1024, "outer": 256, "scale": True, "add": True, "rows": 4096},
}


@pytest.mark.proves("interpreted", "hiera_block:triton")
def test_errs_at_most_twice_as_much_as_torch_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    interpret(INTERPRETED)


@pytest.mark.proves("compiled", "hiera_block:triton", "memory_encoder:triton")
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize(("capability", "shared"), [(80, 163), (89, 99), (90, 227), (120, 99)])
def test_compiles_without_spills_and_fits(
    capability: int, shared: int, layer: dict[str, Any]
) -> None:
    pytest.importorskip("triton")
    from sam2_fast.kernels import linear as kernels

    inner, outer, parts = layer["inner"], layer["outer"], layer.get("parts", 0)
    form = kernels.default_form(layer.get("rows", 65536), inner, outer, 2, capability, 132)
    types = dict.fromkeys(("x", "weight", "bias", "gamma", "residual", "out"), "*bf16")
    types |= dict.fromkeys(("in_statistics", "column_sums", "out_statistics"), "*fp32")
    types |= dict.fromkeys(("rows", "inner", "outer", "width", "part_size"), "i32")
    types |= {"eps": "fp32"}
    flags = {name.upper(): layer.get(name, False) for name in ("scale", "add", "pool", "measure")}
    constants = flags | {
        "PARTS": parts,
        "ACTIVATION": layer.get("activation", 0),
        "EVEN": inner % form[2] == 0,
        "BLOCK_M": form[0],
        "BLOCK_N": form[1],
        "BLOCK_K": form[2],
        "GROUP": 8,
        "EXACT": False,
    }
    used = resources(
        kernels.linear_kernel,
        types,
        constants,
        capability,
        *form[3:],
        ("rows", "inner", "outer", "part_size"),
    )
    assert used.spilled_bytes == 0 and used.shared_bytes <= shared * 1024, used


@pytest.mark.parametrize("channels", [96, 144, 1152])
@pytest.mark.parametrize("capability", [80, 90, 120])
def test_row_statistics_and_norms_compile_without_spills(capability: int, channels: int) -> None:
    pytest.importorskip("triton")
    from sam2_fast.kernels import layer_norm as kernels

    block, padded_channels = kernels._rows_at_once(channels)
    constants = {"BLOCK": block, "WIDE": padded_channels}
    types = dict.fromkeys(("x", "weight", "bias", "out"), "*bf16")
    types |= {"statistics": "*fp32", "eps": "fp32", "rows": "i32", "channels": "i32"}
    for kernel in (kernels.row_statistics_kernel, kernels.normalize_kernel):
        used = resources(kernel, types, constants, capability, 8, 1, ("channels",))
        assert used.spilled_bytes == 0, used
