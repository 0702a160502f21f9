"""Linear layers in Triton: against torch in the interpreter, and their code for several GPUs."""

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


def check(found, torchs, exact, name):
    assert rms(found, exact) <= 2 * max(rms(torchs, exact), rms(exact.to(found.dtype), exact)), name


def reference(x, weight, bias, norm, activation, gamma, residual, width):
    if norm is not None:
        x = F.layer_norm(x, (x.shape[1],), norm[0], norm[1], 1e-6)
    y = F.linear(x, weight, bias)
    y = F.gelu(y) if activation == GELU else F.relu(y) if activation == RELU else y
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
    weight, bias, gamma = (
        torch.randn(outer, inner) / inner**0.5,
        torch.randn(outer),
        torch.rand(outer),
    )
    x, norm = 2 * torch.randn(rows, inner) + 3, (1 + torch.rand(inner), torch.randn(inner))
    residual = torch.randn(rows // 4 if width else rows, outer)
    parts = [t.to(half) for t in (x, weight, bias, *norm, gamma, residual)]

    def given(dtype):
        x, weight, bias, a, b, gamma, residual = (t.to(dtype) for t in parts)
        return (
            x,
            weight,
            bias,
            (a, b) if normed else None,
            activation,
            gamma if scaled else None,
            residual if added else None,
            width,
        )

    exact, torchs = reference(*given(torch.float64)), reference(*given(half))
    x, weight, bias, norm, activation, gamma, residual, width = given(half)
    layer = fold(weight, bias, Norm(*norm, 1e-6)) if normed else Layer(weight, bias)
    options = dict(activation=activation, gamma=gamma, residual=residual, width=width)
    for key in (None, "library"):
        with trying() as trial:
            statistics = row_statistics(x) if normed else None
            linear(x, layer, statistics, **options)
        forced = {k: forms[1][-1] if key else forms[0] for k, forms in trial.choices.items()}
        with trying(forced):
            found, after = linear_with_statistics(x, layer, statistics, **options)
        check(found, torchs, exact, (name, key))
        values = found.double()
        groups = values.split(after.group_size, 1)
        assert torch.allclose(
            after.values[:, :, 0].double(), torch.stack([g.mean(1) for g in groups], 1), atol=1e-5
        ), name
        squares = torch.stack([(g - g.mean(1, keepdim=True)).square().sum(1) for g in groups], 1)
        assert torch.allclose(after.values[:, :, 1].double(), squares, rtol=1e-4, atol=1e-5), name
    if normed:  # what one layer has measured folds the norm of the next
        y = normalize(x, layer.norm, half)
        wide = [t.double() for t in norm]
        check(
            y,
            F.layer_norm(x, (inner,), *norm, 1e-6),
            F.layer_norm(x.double(), (inner,), *wide, 1e-6),
            name,
        )
        first = Layer(torch.randn(inner, inner).to(half) / 8, torch.randn(inner).to(half))
        y, statistics = linear_with_statistics(x, first)
        options["residual"] = residual
        found = linear(y, layer, statistics, **options)
        rest = given(torch.float64)[1:]
        check(found, reference(y, *given(half)[1:]), reference(y.double(), *rest), ("chain", name))
"""
LAYERS: dict[str, dict[str, Any]] = {  # of the trunks and of memory attention at 1024 pixels
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
    pointers = ("x", "weight", "bias", "gamma", "residual", "out")
    kinds = dict.fromkeys(pointers, "*bf16") | dict.fromkeys(
        ("in_statistics", "column_sums", "out_statistics"), "*fp32"
    )
    kinds |= dict.fromkeys(("rows", "inner", "outer", "width", "part_size"), "i32") | {
        "eps": "fp32"
    }
    flags = {name.upper(): layer.get(name, False) for name in ("scale", "add", "pool", "measure")}
    constants = flags | {
        "PARTS": parts,
        "ACTIVATION": layer.get("activation", 0),
        "EVEN": inner % form[2] == 0,
    }
    constants |= {
        "BLOCK_M": form[0],
        "BLOCK_N": form[1],
        "BLOCK_K": form[2],
        "GROUP": 8,
        "EXACT": False,
    }
    found = resources(
        kernels.linear_kernel,
        kinds,
        constants,
        capability,
        *form[3:],
        ("rows", "inner", "outer", "part_size"),
    )
    assert found[1] == 0 and found[2] <= shared * 1024, found


@pytest.mark.parametrize("channels", [96, 144, 1152])
@pytest.mark.parametrize("capability", [80, 90, 120])
def test_row_statistics_compile_without_spills(capability: int, channels: int) -> None:
    pytest.importorskip("triton")
    from sam2_fast.kernels import layer_norm as kernels

    block, wide = kernels._rows_at_once(channels)
    kinds = {
        "x": "*bf16",
        "statistics": "*fp32",
        "weight": "*bf16",
        "bias": "*bf16",
        "out": "*bf16",
        "eps": "fp32",
    }
    kinds |= dict.fromkeys(("rows", "channels"), "i32")
    for kernel in (kernels.row_statistics_kernel, kernels.normalize_kernel):
        assert (
            resources(
                kernel, kinds, {"BLOCK": block, "WIDE": wide}, capability, 8, 1, ("channels",)
            )[1]
            == 0
        )
