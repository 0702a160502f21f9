"""Windowed attention: errors of every instruction set against the definition in float64, and the
behaviour of the public function.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sam2_fast.ops.core.native import native
from sam2_fast.ops.core.registry import BackendError
from sam2_fast.ops.window_attention import window_attention, window_attention_reference
from sam2_fast.proving.errors import cast
from tests.ops import cases

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = {  # height, width, heads, channels of a head, window, pooled
    "whole windows": (16, 16, 1, 16, 8, False),
    "small windows": (16, 8, 2, 12, 4, False),
    "windows beyond the grid": (18, 22, 2, 14, 7, False),
    "large windows beyond the grid": (20, 16, 1, 12, 14, False),
    "one token beyond the last window": (15, 8, 1, 8, 7, False),
    "a window larger than the grid": (3, 5, 2, 8, 14, False),
    "windows of one token": (3, 5, 1, 4, 1, False),
    "pooled": (16, 16, 2, 12, 8, True),
    "pooled small windows": (16, 12, 4, 6, 4, True),
    "pooled windows of one cell": (6, 4, 1, 4, 2, True),
    "pooled windows beyond the grid": (20, 16, 2, 12, 14, True),
    "large pooled windows": (36, 40, 1, 4, 20, True),
    "global": (8, 8, 2, 8, 0, False),
    "global, a partial block": (9, 15, 3, 16, 0, False),
    "global, pooled": (10, 14, 2, 8, 0, True),
    "head of 56": (8, 8, 2, 56, 8, False),
    "head of 72": (8, 8, 2, 72, 8, True),
    "head of 96": (14, 14, 1, 96, 14, False),
    "one token": (1, 1, 1, 4, 7, False),
}
Inputs = tuple[Tensor, Tensor, int, int, bool]


def case(
    height: int,
    width: int,
    heads: int,
    head: int,
    window: int,
    pool: bool,
    batch: int = 2,
    scale: float = 1.0,
) -> Inputs:
    """Arguments of the op. A large `scale` makes attention peaked."""
    generator = torch.Generator().manual_seed(height * 100 + width)
    qkv = torch.randn(batch, height, width, 3 * heads * head, generator=generator)
    pad = torch.randn(3 * heads * head, generator=generator)
    qkv[..., : heads * head] *= scale
    return qkv, pad, heads, window, pool


def native_output(inputs: Inputs, isa: str, threads: int = 2) -> Tensor:
    """The output of the native kernel, written to memory that is full of NaN."""
    qkv, pad, heads, window, pool = inputs
    stride = 2 if pool else 1
    out = torch.full(
        (qkv.shape[0], qkv.shape[1] // stride, qkv.shape[2] // stride, qkv.shape[3] // 3),
        torch.nan,
        dtype=qkv.dtype,
    )
    module = native()
    assert module is not None
    module.window_attention(qkv, pad.float(), out, heads, window, pool, threads, isa)
    return out


def error(output: Tensor, exact: Tensor) -> float:
    """Root mean square error."""
    return (output.double() - exact).square().mean().sqrt().item()


@pytest.mark.proves("reference", "window_attention:cpu")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [1.0, 16.0], ids="scale {}".format)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_errs_at_most_twice_as_much_as_torch(
    isa: str, dtype: torch.dtype, scale: float, shape: tuple[int, int, int, int, int, bool]
) -> None:
    inputs = cast(case(*shape, scale=scale), dtype)
    exact = window_attention_reference(*cast(inputs, torch.float64))
    torch_error = error(window_attention_reference(*inputs), exact)
    # Torch's result may be exact (one key); the error of rounding to the dtype is always allowed.
    limit = 2 * max(torch_error, error(exact.to(dtype), exact))
    kernel_error = error(native_output(inputs, isa), exact)
    assert kernel_error <= limit, (kernel_error, torch_error)


@pytest.mark.parametrize(
    "name", ["windows beyond the grid", "pooled small windows", "global, a partial block"]
)
def test_results_do_not_depend_on_threads_or_the_other_images(isa: str, name: str) -> None:
    qkv, *rest = case(*SHAPES[name], batch=3)
    expected = native_output((qkv, *rest), isa, threads=1)
    for threads in (1, 2, 3, 7):
        assert torch.equal(native_output((qkv, *rest), isa, threads), expected)
    for i in range(3):
        assert torch.equal(native_output((qkv[i : i + 1], *rest), isa), expected[i : i + 1])


@pytest.mark.parametrize("pool", [False, True])
def test_nan_affects_only_its_window_and_head(isa: str, pool: bool) -> None:
    inputs = case(16, 16, 2, 8, 4, pool)
    clean = native_output(inputs, isa)
    inputs[0][1, 5, 6, 16 + 8 + 3] = torch.nan  # a key of the second head
    output = native_output(inputs, isa)
    side = 2 if pool else 4
    affected = torch.zeros(clean.shape, dtype=torch.bool)
    affected[1, side : 2 * side, side : 2 * side, 8:] = True
    assert output[affected].isnan().all()
    assert torch.equal(output[~affected], clean[~affected])


def test_max_pooling_of_queries_propagates_nan(isa: str) -> None:
    inputs = case(8, 8, 1, 4, 4, True)
    inputs[0][0, 2, 3, 1] = torch.nan
    output = native_output(inputs, isa)
    assert output[0, 1, 1].isnan().all() and output.isnan().sum() == 4


def test_autocast_of_the_caller_sets_the_dtype() -> None:
    qkv, pad, *rest = case(*SHAPES["pooled"])
    with torch.autocast("cpu", torch.bfloat16):
        output = window_attention(qkv, pad, *rest)
    expected = window_attention(qkv.bfloat16(), pad.bfloat16(), *rest)
    assert output.dtype == torch.bfloat16 and torch.equal(output, expected)


def test_strides_do_not_change_results() -> None:
    qkv, pad, *rest = case(*SHAPES["pooled"])
    strided_pad = pad.repeat_interleave(2)[::2]
    assert torch.equal(
        window_attention(qkv.mT.contiguous().mT, strided_pad, *rest),
        window_attention(qkv, pad, *rest),
    )


def test_empty_inputs_give_empty_outputs() -> None:
    qkv, pad, *rest = case(*SHAPES["pooled"])
    assert window_attention(qkv[:0], pad, *rest).shape == (0, 8, 8, 24)
    assert window_attention(qkv[:, :0], pad, *rest).shape == (2, 0, 8, 24)


def test_auto_runs_the_native_kernel_on_a_cpu() -> None:
    inputs = case(*SHAPES["whole windows"])
    assert torch.equal(window_attention(*inputs), window_attention(*inputs, backend="cpu"))
    assert not torch.equal(window_attention(*inputs), window_attention(*inputs, backend="torch"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda x, p, h, w, pool: (x.double(), p, h, w, pool), "float64"),
        (lambda x, p, h, w, pool: (x.requires_grad_(), p, h, w, pool), "gradients"),
        (lambda x, p, h, w, pool: (x.to("meta"), p, h, w, pool), "meta"),
        (
            lambda x, p, h, w, pool: (x[:, :15], p, h, w, pool),
            "pooling: even windows on even grids",
        ),
        (lambda x, p, h, w, pool: (x, p, h, 65, False), "windows up to 64"),
        (lambda x, p, h, w, pool: (x, p, 8, w, pool), "a head has 3 channels"),
    ],
)
def test_a_refusal_names_its_reason(change: Callable[..., Inputs], reason: str) -> None:
    with pytest.raises(
        BackendError, match=rf"window_attention: cpu refuses: .*{reason}.*Would run: torch"
    ):
        window_attention(*change(*case(*SHAPES["pooled"])), backend="cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, p, h, w, pool: (x[0], p, h, w, pool), "qkv: expected shape"),
        (lambda x, p, h, w, pool: (x, p, 5, w, pool), "qkv: expected shape .* num_heads 5"),
        (lambda x, p, h, w, pool: (x, p, 0, w, pool), "qkv: expected shape .* num_heads 0"),
        (lambda x, p, h, w, pool: (x, p[1:], h, w, pool), r"pad: expected shape \(72,\)"),
        (lambda x, p, h, w, pool: (x, p, h, -1, pool), "window: expected tokens"),
    ],
)
def test_arguments_that_do_not_fit_are_named(change: Callable[..., Inputs], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        window_attention(*change(*case(*SHAPES["pooled"])))


def test_the_binding_checks_its_arguments(isa: str) -> None:
    qkv, pad, heads, window, pool = case(*SHAPES["pooled"])
    out = torch.zeros(2, 8, 8, 24)
    module = native()
    assert module is not None
    for arguments in (
        (qkv[0], pad, out, heads, window, pool),
        (qkv.double(), pad, out, heads, window, pool),
        (qkv, pad.half(), out, heads, window, pool),
        (qkv, pad[1:], out, heads, window, pool),
        (qkv, pad, out.half(), heads, window, pool),
        (qkv, pad, out[:, 1:], heads, window, pool),
        (qkv, pad, out, 5, window, pool),
        (qkv, pad, out, 8, window, pool),
        (qkv, pad, out, heads, 65, pool),
        (qkv, pad, out, heads, 7, pool),
        (qkv.transpose(1, 2), pad, out, heads, window, pool),
    ):
        with pytest.raises(ValueError, match="expected"):
            module.window_attention(*arguments, 2, isa)


def test_opcheck_passes() -> None:
    for name in ("pooled", "global", "windows beyond the grid"):
        torch.library.opcheck(torch.ops.sam2_fast.window_attention.default, case(*SHAPES[name]))


def test_gradients_flow_through_the_definition() -> None:
    qkv, pad, *rest = case(*SHAPES["windows beyond the grid"])
    window_attention(qkv.requires_grad_(), pad.requires_grad_(), *rest).sum().backward()
    assert qkv.grad is not None and pad.grad is not None


def window_attention_case() -> cases.Case:
    # Windows of 4 on a grid of 6 x 7.
    return cases.case_of(
        lambda qkv, pad, **kwargs: window_attention(qkv, pad, 2, 4, **kwargs),
        *cases.random_tensors((1, 6, 7, 24), (24,)),
    )


RECORDED: dict[str, Callable[[], cases.Case]] = {"window_attention": window_attention_case}
