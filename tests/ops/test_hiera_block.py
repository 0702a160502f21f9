"""The fused Hiera block: errors of every instruction set against the definition in float64, and the
behaviour of the public function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_fast.config import Sam2Config
from sam2_fast.model.hiera import Hiera, MultiScaleBlock
from sam2_fast.ops.core.cache import for_cpu
from sam2_fast.ops.core.layout import Leaf
from sam2_fast.ops.core.native import native
from sam2_fast.ops.core.registry import BackendError
from sam2_fast.ops.hiera_block import (
    HieraBlockWeights,
    _native_block,
    hiera_block,
    hiera_block_reference,
)
from sam2_fast.proving.errors import cast
from tests.ops import cases
from tests.ops.cases import with_matrix_dtype

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = {
    "whole windows": (16, 16, 16, 16, 1, 8, False),
    "small windows": (16, 8, 24, 24, 2, 4, False),
    "windows beyond the grid": (18, 22, 28, 28, 2, 7, False),
    "large windows beyond the grid": (20, 16, 12, 12, 1, 14, False),
    "one token beyond the last window": (15, 8, 8, 8, 1, 7, False),
    "pooled": (16, 16, 12, 24, 2, 8, True),
    "pooled small windows": (16, 12, 12, 24, 4, 4, True),
    "pooled windows beyond the grid": (20, 16, 12, 24, 2, 14, True),
    "global": (8, 8, 16, 16, 2, 0, False),
    "global, a partial block": (9, 15, 16, 16, 1, 0, False),
    "head of 56": (8, 8, 112, 112, 2, 8, False),
    "head of 72": (8, 8, 144, 144, 2, 8, False),
    "head of 96": (14, 14, 96, 96, 1, 14, False),
    "one token": (1, 1, 4, 4, 1, 7, False),
    "many channels": (4, 4, 400, 400, 4, 4, False),
}
Inputs = tuple[Tensor, HieraBlockWeights, int, int, bool]


def case(
    height: int,
    width: int,
    dim: int,
    out: int,
    heads: int,
    window: int,
    pool: bool,
    batch: int = 2,
    scale: float = 1.0,
) -> Inputs:
    """Arguments of the op. A large `scale` makes attention peaked."""
    generator = torch.Generator().manual_seed(height * 100 + width)

    def random(leaf: Leaf, shape: tuple[int, ...]) -> Tensor:
        std = shape[1] ** -0.5 if leaf.matrix else 0.3
        if leaf.name == "qkv.weight":
            std *= scale
        return torch.randn(shape, generator=generator) * std

    weights = HieraBlockWeights.build(random, count=int(pool), C=dim, D=out, F=4 * out)
    return torch.randn(batch, height, width, dim, generator=generator), weights, heads, window, pool


def native_weights(weights: HieraBlockWeights) -> Any:
    """The weights as an object of the native module."""
    module = native()
    assert module is not None
    return module.HieraBlockWeights(for_cpu(weights, weights.qkv.weight.dtype))


def native_output(inputs: Inputs, isa: str, threads: int = 2) -> Tensor:
    """The output of the native kernel, written to memory that is full of NaN."""
    x, weights, heads, window, pool = inputs
    stride = 2 if pool else 1
    out = torch.full(
        (x.shape[0], x.shape[1] // stride, x.shape[2] // stride, weights.proj.bias.shape[0]),
        torch.nan,
        dtype=x.dtype,
    )
    module = native()
    assert module is not None
    module.hiera_block(x, native_weights(weights), out, heads, window, pool, 1e-6, threads, isa)
    return out


def error(output: Tensor, exact: Tensor) -> float:
    """Root mean square error."""
    return (output.double() - exact).square().mean().sqrt().item()


@pytest.mark.proves("reference", "hiera_block:cpu")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [1.0, 8.0], ids="scale {}".format)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_errs_at_most_twice_as_much_as_torch(
    isa: str, dtype: torch.dtype, scale: float, shape: tuple[int, int, int, int, int, int, bool]
) -> None:
    inputs = cast(case(*shape, scale=scale), dtype)
    exact = hiera_block_reference(*cast(inputs, torch.float64), 1e-6)
    torch_error = error(hiera_block_reference(*inputs, 1e-6), exact)
    # Torch's result may be exact (one key); the error of rounding to the dtype is always allowed.
    limit = 2 * max(torch_error, error(exact.to(dtype), exact))
    kernel_error = error(native_output(inputs, isa), exact)
    assert kernel_error <= limit, (kernel_error, torch_error)


@pytest.mark.parametrize(
    "name", ["windows beyond the grid", "pooled small windows", "global, a partial block"]
)
def test_results_do_not_depend_on_threads_or_the_run_or_the_other_images(
    isa: str, name: str
) -> None:
    x, weights, *rest = case(*SHAPES[name], batch=3)
    expected = native_output((x, weights, *rest), isa, threads=1)
    for threads in (1, 2, 3, 7):
        assert torch.equal(native_output((x, weights, *rest), isa, threads), expected)
    for i in range(3):
        image = native_output((x[i : i + 1], weights, *rest), isa)
        assert torch.equal(image, expected[i : i + 1])


def test_nan_affects_only_its_window(isa: str) -> None:
    inputs = case(16, 16, 8, 8, 1, 4, False)
    clean = native_output(inputs, isa)
    inputs[0][1, 5, 6, 2] = torch.nan
    output = native_output(inputs, isa)
    affected = torch.zeros(2, 16, 16, dtype=torch.bool)
    affected[1, 4:8, 4:8] = True
    assert output[affected].isnan().all()
    assert torch.equal(output[~affected], clean[~affected])


def test_weights_may_be_bfloat16_for_float32_tokens(isa: str) -> None:
    """As under autocast: the residual stream is float32, matrices are multiplied in bfloat16."""
    x, weights, *rest = case(*SHAPES["windows beyond the grid"])
    half_weights = with_matrix_dtype(weights)
    exact = hiera_block_reference(x.double(), half_weights.to(torch.float64), *rest, 1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        torch_error = error(hiera_block_reference(x, weights, *rest, 1e-6), exact)
    output = native_output((x, half_weights, *rest), isa)
    assert output.dtype == torch.float32 and error(output, exact) <= 2 * torch_error


def test_autocast_of_the_caller_sets_the_compute_dtype() -> None:
    x, weights, *rest = case(*SHAPES["pooled"])
    with torch.autocast("cpu", torch.bfloat16):
        output = hiera_block(x, weights, *rest)
    expected = hiera_block(x, with_matrix_dtype(weights), *rest)
    assert output.dtype == torch.float32 and torch.equal(output, expected)


@pytest.mark.parametrize("sign", [1, -1])
def test_gelu_is_at_least_as_accurate_as_that_of_torch(isa: str, sign: int) -> None:
    """The output is that of the activation: attention and norms contribute nothing."""
    x = sign * torch.linspace(0, 12, 4096)[::61]
    zeros = HieraBlockWeights.build(lambda _, shape: torch.zeros(shape), count=0, C=2, D=2, F=2)
    outputs = []
    for value in x:
        # The weights of the norm are zero, so that the input of the activation is this bias.
        weights = zeros.with_tensors(
            {"fc1.bias": torch.full((2,), value.item()), "fc2.weight": torch.eye(2)}
        )
        outputs.append(
            native_output((torch.zeros(1, 1, 1, 2), weights, 1, 1, False), isa)[0, 0, 0, 0]
        )
    exact = F.gelu(x.double())
    assert (torch.stack(outputs) - exact).abs().max() <= max(
        (F.gelu(x) - exact).abs().max(), 1.2e-7 * exact.abs().max()
    )


def test_strides_do_not_change_results() -> None:
    x, weights, *rest = case(*SHAPES["pooled"])
    strided_weights = weights.mapped(lambda _, w: w.repeat_interleave(2, 0)[::2])
    assert torch.equal(
        hiera_block(x.transpose(1, 2).contiguous().transpose(1, 2), strided_weights, *rest),
        hiera_block(x, weights, *rest),
    )


def test_empty_inputs_give_empty_outputs() -> None:
    x, weights, *rest = case(*SHAPES["pooled"])
    assert hiera_block(x[:0], weights, *rest).shape == (0, 8, 8, 24)
    assert hiera_block(x[:, :0], weights, *rest).shape == (2, 0, 8, 24)


def test_auto_runs_the_native_kernel_on_a_cpu() -> None:
    inputs = case(*SHAPES["whole windows"])
    assert torch.equal(hiera_block(*inputs), hiera_block(*inputs, backend="cpu"))
    assert not torch.equal(hiera_block(*inputs), hiera_block(*inputs, backend="torch"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda x, w, h, s, p: (x.double(), w.mapped(lambda _, t: t.double()), h, s, p), "float64"),
        (
            lambda x, w, h, s, p: (
                x,
                w.with_tensors({"proj.weight": w.proj.weight.half()}),
                h,
                s,
                p,
            ),
            "float16",
        ),
        (lambda x, w, h, s, p: (x.requires_grad_(), w, h, s, p), "gradients"),
        (lambda x, w, h, s, p: (x.to("meta"), w, h, s, p), "meta"),
        (lambda x, w, h, s, p: (x[:, :15], w, h, s, p), "pooling: even windows on even grids"),
        (lambda x, w, h, s, p: (x, w, h, 0, p), "pooling: even windows"),
        (lambda x, w, h, s, p: (x, w, 8, s, p), "even numbers of channels"),
    ],
)
def test_a_refusal_names_its_reason(change: Callable[..., Inputs], reason: str) -> None:
    with pytest.raises(
        BackendError, match=rf"hiera_block: cpu refuses: .*{reason}.*Would run: torch"
    ):
        hiera_block(*change(*case(*SHAPES["pooled"])), backend="cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, w, h, s, p: (x[0], w, h, s, p), "x: expected shape"),
        (
            lambda x, w, h, s, p: (x[..., 1:], w, h, s, p),
            "x: expected the 12 channels of the weights, got 11",
        ),
        (
            lambda x, w, h, s, p: (x, replace(w, shortcut=None), h, s, p),
            "weights.shortcut: expected one exactly if",
        ),
        (
            lambda x, w, h, s, p: (x, replace(w, shortcut=None), h, s, False),
            "12 output channels without pooling",
        ),
        (
            lambda x, w, h, s, p: (x, w.with_tensors({"qkv.weight": w.qkv.weight[:-1]}), h, s, p),
            r"weights.qkv.weight: expected shape \(72, 12\)",
        ),
        (lambda x, w, h, s, p: (x, w, 5, s, p), "num_heads: expected a divisor of 24"),
        (lambda x, w, h, s, p: (x, w, h, -1, p), "window: expected tokens"),
    ],
)
def test_arguments_that_do_not_fit_are_named(change: Callable[..., Inputs], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hiera_block(*change(*case(*SHAPES["pooled"])))


def test_the_binding_checks_its_arguments(isa: str) -> None:
    x, w, heads, window, pool = case(*SHAPES["pooled"])

    def changed(name: str, change: Callable[[Tensor], Tensor]) -> HieraBlockWeights:
        return w.converted(lambda leaf, t: change(t) if leaf.name == name else t)

    invalid: Sequence[Inputs] = (
        (x[0], w, heads, window, pool),
        (x.double(), w, heads, window, pool),
        (x, replace(w, shortcut=None), heads, window, pool),
        (x, changed("qkv.weight", lambda t: t.half()), heads, window, pool),
        (x, changed("fc1.weight", lambda t: t[:, 1:].contiguous()), heads, window, pool),
        (x, changed("shortcut.weight", lambda t: t.t().contiguous()), heads, window, pool),
        (x, w, 5, window, pool),
        (x, w, heads, 65, pool),
        (x, w, heads, 7, pool),
    )
    module = native()
    assert module is not None
    for tokens, weights, *rest in invalid:
        with pytest.raises(ValueError, match="expected"):
            module.hiera_block(
                tokens,
                module.HieraBlockWeights(weights),
                torch.zeros(2, 8, 8, 24),
                *rest,
                1e-6,
                2,
                isa,
            )
    out = torch.zeros(2, 7, 8, 24)
    with pytest.raises(ValueError, match="out: expected size 8 of dimension 1"):
        module.hiera_block(x, native_weights(w), out, heads, window, pool, 1e-6, 2, isa)


def test_opcheck_passes() -> None:
    for name in ("pooled", "global"):
        x, weights, *rest = case(*SHAPES[name])
        torch.library.opcheck(
            torch.ops.sam2_fast.hiera_block.default, (x, weights.flatten(), *rest, 1e-6)
        )


@pytest.mark.parametrize(
    "name", ["windows beyond the grid", "global, a partial block", "head of 72"]
)
def test_the_output_may_overwrite_the_input(name: str) -> None:
    x, weights, *rest = case(*SHAPES[name], batch=3)
    expected = hiera_block(x, weights, *rest)
    output = hiera_block(x, weights, *rest, overwrite=True)
    assert torch.equal(output, expected) and output.data_ptr() == x.data_ptr()


def test_pooled_strided_or_reference_blocks_do_not_overwrite_their_input() -> None:
    pooled, whole = case(*SHAPES["pooled"]), case(*SHAPES["whole windows"])
    transposed = whole[0].transpose(1, 2).contiguous().transpose(1, 2)
    for x, rest, backend in (
        (pooled[0], pooled[1:], "auto"),
        (transposed, whole[1:], "auto"),
        (whole[0], whole[1:], "torch"),
    ):
        before = x.clone()
        hiera_block(x, *rest, backend=backend, overwrite=True)
        assert torch.equal(x, before)


def test_a_trunk_with_hooks_overwrites_no_outputs() -> None:
    trunk = Hiera.from_config(
        Sam2Config(embed_dim=16, stages=(1, 2, 1, 1), global_blocks=(), image_size=64)
    ).eval()
    images = torch.randn(1, 3, 64, 64)
    hooked: list[tuple[Tensor, Tensor]] = []
    with torch.inference_mode():
        expected = [m.clone() for m in trunk(images)]
        trunk.blocks[1].register_forward_hook(
            lambda _module, _inputs, output: hooked.append((output, output.clone()))
        )
        maps = trunk(images)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(maps, expected, strict=True))
    assert torch.equal(*hooked[0])


def test_gradients_flow_through_the_modules() -> None:
    block = MultiScaleBlock(12, 24, 2, q_stride=(2, 2), window_size=4)
    block(torch.randn(1, 8, 8, 12)).sum().backward()
    assert all(p.grad is not None for p in block.parameters())


def test_the_private_function_accepts_an_instruction_set() -> None:
    x, weights, *rest = case(*SHAPES["pooled"])
    assert _native_block(x, weights, *rest, 1e-6, isa="portable").shape == (2, 8, 8, 24)


def hiera_block_case(pool: bool) -> cases.Case:
    x, weights, *rest = case(8, 8, 16, 32 if pool else 16, 2, 4, pool, batch=1)
    unflatten = HieraBlockWeights.unflatten
    return cases.case_of(
        lambda x, *w, **kwargs: hiera_block(x, unflatten(w), *rest, **kwargs),
        x,
        *weights.flatten(),
    )


RECORDED: dict[str, Callable[[], cases.Case]] = {
    "hiera_block": lambda: hiera_block_case(False),
    "hiera_block, pooled": lambda: hiera_block_case(True),
}
