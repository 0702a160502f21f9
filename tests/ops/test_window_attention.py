"""Windowed attention: every instruction set against the definition in float64, and what the public
function promises.
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
    "windows that stick out": (18, 22, 2, 14, 7, False),
    "large windows that stick out": (20, 16, 1, 12, 14, False),
    "one token beyond the last window": (15, 8, 1, 8, 7, False),
    "a window larger than the grid": (3, 5, 2, 8, 14, False),
    "windows of one token": (3, 5, 1, 4, 1, False),
    "pooled": (16, 16, 2, 12, 8, True),
    "pooled small windows": (16, 12, 4, 6, 4, True),
    "pooled windows of one cell": (6, 4, 1, 4, 2, True),
    "pooled windows that stick out": (20, 16, 2, 12, 14, True),
    "large pooled windows": (36, 40, 1, 4, 20, True),
    "global": (8, 8, 2, 8, 0, False),
    "global, a part of a block": (9, 15, 3, 16, 0, False),
    "global, pooled": (10, 14, 2, 8, 0, True),
    "head of 56": (8, 8, 2, 56, 8, False),
    "head of 72": (8, 8, 2, 72, 8, True),
    "head of 96": (14, 14, 1, 96, 14, False),
    "one token": (1, 1, 1, 4, 7, False),
}
Case = tuple[Tensor, Tensor, int, int, bool]


def case(
    height: int,
    width: int,
    heads: int,
    head: int,
    window: int,
    pool: bool,
    batch: int = 2,
    scale: float = 1.0,
) -> Case:
    """Arguments of the op. `scale` makes peaked attention."""
    generator = torch.Generator().manual_seed(height * 100 + width)
    qkv = torch.randn(batch, height, width, 3 * heads * head, generator=generator)
    pad = torch.randn(3 * heads * head, generator=generator)
    qkv[..., : heads * head] *= scale
    return qkv, pad, heads, window, pool


def poisoned(given: Case, isa: str, threads: int = 2) -> Tensor:
    """The kernel itself, into memory full of NaN."""
    qkv, pad, heads, window, pool = given
    by = 2 if pool else 1
    out = torch.full(
        (qkv.shape[0], qkv.shape[1] // by, qkv.shape[2] // by, qkv.shape[3] // 3),
        torch.nan,
        dtype=qkv.dtype,
    )
    module = native()
    assert module is not None
    module.window_attention(qkv, pad.float(), out, heads, window, pool, threads, isa)
    return out


def error(found: Tensor, exact: Tensor) -> float:
    return (found.double() - exact).square().mean().sqrt().item()


@pytest.mark.proves("reference", "window_attention:cpu")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [1.0, 16.0], ids="scale {}".format)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_errs_at_most_twice_as_much_as_torch(
    isa: str, dtype: torch.dtype, scale: float, shape: tuple[int, int, int, int, int, bool]
) -> None:
    given = cast(case(*shape, scale=scale), dtype)
    exact = window_attention_reference(*cast(given, torch.float64))
    theirs, mine = (
        error(window_attention_reference(*given), exact),
        error(poisoned(given, isa), exact),
    )
    # where torch is exact by luck (one key), a result rounded to its dtype is as good as can be
    assert mine <= 2 * max(theirs, error(exact.to(dtype), exact)), (mine, theirs)


@pytest.mark.parametrize(
    "name", ["windows that stick out", "pooled small windows", "global, a part of a block"]
)
def test_results_do_not_depend_on_threads_or_the_other_images(isa: str, name: str) -> None:
    qkv, *rest = case(*SHAPES[name], batch=3)
    one = poisoned((qkv, *rest), isa, threads=1)
    for threads in (1, 2, 3, 7):
        assert torch.equal(poisoned((qkv, *rest), isa, threads), one)
    for i in range(3):
        assert torch.equal(poisoned((qkv[i : i + 1], *rest), isa), one[i : i + 1])


@pytest.mark.parametrize("pool", [False, True])
def test_not_a_number_spoils_its_window_and_head_and_nothing_else(isa: str, pool: bool) -> None:
    given = case(16, 16, 2, 8, 4, pool)
    clean = poisoned(given, isa)
    given[0][1, 5, 6, 16 + 8 + 3] = torch.nan  # a key of the second head
    found = poisoned(given, isa)
    side = 2 if pool else 4
    spoilt = torch.zeros(clean.shape, dtype=torch.bool)
    spoilt[1, side : 2 * side, side : 2 * side, 8:] = True
    assert found[spoilt].isnan().all() and torch.equal(found[~spoilt], clean[~spoilt])


def test_a_query_that_is_not_a_number_survives_the_pooling(isa: str) -> None:
    given = case(8, 8, 1, 4, 4, True)
    given[0][0, 2, 3, 1] = torch.nan
    found = poisoned(given, isa)
    assert found[0, 1, 1].isnan().all() and found.isnan().sum() == 4


def test_the_callers_autocast_decides_the_dtype() -> None:
    qkv, pad, *rest = case(*SHAPES["pooled"])
    with torch.autocast("cpu", torch.bfloat16):
        found = window_attention(qkv, pad, *rest)
    assert found.dtype == torch.bfloat16 and torch.equal(
        found, window_attention(qkv.bfloat16(), pad.bfloat16(), *rest)
    )


def test_any_strides() -> None:
    qkv, pad, *rest = case(*SHAPES["pooled"])
    spread = pad.repeat_interleave(2)[::2]
    assert torch.equal(
        window_attention(qkv.mT.contiguous().mT, spread, *rest), window_attention(qkv, pad, *rest)
    )


def test_nothing_to_do() -> None:
    qkv, pad, *rest = case(*SHAPES["pooled"])
    assert window_attention(qkv[:0], pad, *rest).shape == (0, 8, 8, 24)
    assert window_attention(qkv[:, :0], pad, *rest).shape == (2, 0, 8, 24)


def test_auto_is_the_native_kernel_on_a_cpu() -> None:
    given = case(*SHAPES["whole windows"])
    assert torch.equal(window_attention(*given), window_attention(*given, backend="cpu"))
    assert not torch.equal(window_attention(*given), window_attention(*given, backend="torch"))


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
def test_the_kernel_says_why_it_refuses(change: Callable[..., Case], reason: str) -> None:
    with pytest.raises(
        BackendError, match=rf"window_attention: cpu refuses: .*{reason}.*Would run: torch"
    ):
        window_attention(*change(*case(*SHAPES["pooled"])), backend="cpu")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x, p, h, w, pool: (x[0], p, h, w, pool), "qkv: expected shape"),
        (lambda x, p, h, w, pool: (x, p, 5, w, pool), "qkv: expected shape .* num_heads 5"),
        (lambda x, p, h, w, pool: (x, p, 0, w, pool), "qkv: expected shape .* num_heads 0"),
        (lambda x, p, h, w, pool: (x, p[1:], h, w, pool), r"pad: expected shape \(72,\)"),
        (lambda x, p, h, w, pool: (x, p, h, -1, pool), "window: expected tokens"),
    ],
)
def test_arguments_that_do_not_fit_are_named(change: Callable[..., Case], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        window_attention(*change(*case(*SHAPES["pooled"])))


def test_the_binding_checks_for_itself(isa: str) -> None:
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


def test_opcheck() -> None:
    for name in ("pooled", "global", "windows that stick out"):
        torch.library.opcheck(torch.ops.sam2_fast.window_attention.default, case(*SHAPES[name]))


def test_gradients_flow_through_the_definition() -> None:
    qkv, pad, *rest = case(*SHAPES["windows that stick out"])
    window_attention(qkv.requires_grad_(), pad.requires_grad_(), *rest).sum().backward()
    assert qkv.grad is not None and pad.grad is not None


def of_window_attention() -> cases.Case:
    # windows that stick out of the grid
    return cases.drawn(
        lambda qkv, pad, **how: window_attention(qkv, pad, 2, 4, **how),
        *cases.numbers((1, 6, 7, 24), (24,)),
    )


RECORDED: dict[str, Callable[[], cases.Case]] = {"window_attention": of_window_attention}
