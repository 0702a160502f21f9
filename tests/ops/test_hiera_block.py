"""The fused Hiera block: every instruction set against the definition in float64, and what the
public function promises.
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
from sam2_fast.model.hiera import Block, Hiera
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
from tests.ops.cases import narrowed

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = {
    "whole windows": (16, 16, 16, 16, 1, 8, False),
    "small windows": (16, 8, 24, 24, 2, 4, False),
    "windows that stick out": (18, 22, 28, 28, 2, 7, False),
    "large windows that stick out": (20, 16, 12, 12, 1, 14, False),
    "one token beyond the last window": (15, 8, 8, 8, 1, 7, False),
    "pooled": (16, 16, 12, 24, 2, 8, True),
    "pooled small windows": (16, 12, 12, 24, 4, 4, True),
    "pooled windows that stick out": (20, 16, 12, 24, 2, 14, True),
    "global": (8, 8, 16, 16, 2, 0, False),
    "global, a part of a block": (9, 15, 16, 16, 1, 0, False),
    "head of 56": (8, 8, 112, 112, 2, 8, False),
    "head of 72": (8, 8, 144, 144, 2, 8, False),
    "head of 96": (14, 14, 96, 96, 1, 14, False),
    "one token": (1, 1, 4, 4, 1, 7, False),
    "wide": (4, 4, 400, 400, 4, 4, False),
}
Case = tuple[Tensor, HieraBlockWeights, int, int, bool]


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
) -> Case:
    """Arguments of the op. `scale` makes peaked attention."""
    generator = torch.Generator().manual_seed(height * 100 + width)

    def random(leaf: Leaf, shape: tuple[int, ...]) -> Tensor:
        spread = shape[1] ** -0.5 if leaf.matrix else 0.3
        return (
            torch.randn(shape, generator=generator)
            * spread
            * (scale if leaf.name == "qkv.weight" else 1.0)
        )

    weights = HieraBlockWeights.build(random, count=int(pool), C=dim, D=out, F=4 * out)
    return torch.randn(batch, height, width, dim, generator=generator), weights, heads, window, pool


def held(weights: HieraBlockWeights) -> Any:
    """Weights as the kernel takes them."""
    module = native()
    assert module is not None
    return module.HieraBlockWeights(for_cpu(weights, weights.qkv.weight.dtype))


def poisoned(given: Case, isa: str, threads: int = 2) -> Tensor:
    """The kernel itself, into memory full of NaN."""
    x, weights, heads, window, pool = given
    by = 2 if pool else 1
    out = torch.full(
        (x.shape[0], x.shape[1] // by, x.shape[2] // by, weights.proj.bias.shape[0]),
        torch.nan,
        dtype=x.dtype,
    )
    module = native()
    assert module is not None
    module.hiera_block(x, held(weights), out, heads, window, pool, 1e-6, threads, isa)
    return out


def error(found: Tensor, exact: Tensor) -> float:
    return (found.double() - exact).square().mean().sqrt().item()


@pytest.mark.proves("reference", "hiera_block:cpu")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [1.0, 8.0], ids="scale {}".format)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_errs_at_most_twice_as_much_as_torch(
    isa: str, dtype: torch.dtype, scale: float, shape: tuple[int, int, int, int, int, int, bool]
) -> None:
    given = cast(case(*shape, scale=scale), dtype)
    exact = hiera_block_reference(*cast(given, torch.float64), 1e-6)
    theirs, mine = (
        error(hiera_block_reference(*given, 1e-6), exact),
        error(poisoned(given, isa), exact),
    )
    # where torch is exact by luck (one key), a result rounded to its dtype is as good as can be
    assert mine <= 2 * max(theirs, error(exact.to(dtype), exact)), (mine, theirs)


@pytest.mark.parametrize(
    "name", ["windows that stick out", "pooled small windows", "global, a part of a block"]
)
def test_results_do_not_depend_on_threads_or_the_run_or_the_other_images(
    isa: str, name: str
) -> None:
    x, weights, *rest = case(*SHAPES[name], batch=3)
    one = poisoned((x, weights, *rest), isa, threads=1)
    for threads in (1, 2, 3, 7):
        assert torch.equal(poisoned((x, weights, *rest), isa, threads), one)
    for i in range(3):
        assert torch.equal(poisoned((x[i : i + 1], weights, *rest), isa), one[i : i + 1])


def test_not_a_number_spoils_its_window_and_nothing_else(isa: str) -> None:
    given = case(16, 16, 8, 8, 1, 4, False)
    clean = poisoned(given, isa)
    given[0][1, 5, 6, 2] = torch.nan
    found = poisoned(given, isa)
    spoilt = torch.zeros(2, 16, 16, dtype=torch.bool)
    spoilt[1, 4:8, 4:8] = True
    assert found[spoilt].isnan().all() and torch.equal(found[~spoilt], clean[~spoilt])


def test_weights_may_be_narrower_than_the_tokens(isa: str) -> None:
    """As under autocast: a float32 residual stream through bfloat16 products."""
    x, weights, *rest = case(*SHAPES["windows that stick out"])
    narrow = narrowed(weights)
    exact = hiera_block_reference(x.double(), narrow.to(torch.float64), *rest, 1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        theirs = error(hiera_block_reference(x, weights, *rest, 1e-6), exact)
    found = poisoned((x, narrow, *rest), isa)
    assert found.dtype == torch.float32 and error(found, exact) <= 2 * theirs


def test_the_callers_autocast_decides_the_dtype_of_products() -> None:
    x, weights, *rest = case(*SHAPES["pooled"])
    with torch.autocast("cpu", torch.bfloat16):
        found = hiera_block(x, weights, *rest)
    narrow = narrowed(weights)
    assert found.dtype == torch.float32 and torch.equal(found, hiera_block(x, narrow, *rest))


@pytest.mark.parametrize("sign", [1, -1])
def test_gelu_is_at_least_as_good_as_torchs(isa: str, sign: int) -> None:
    """An identity around the activation: two hidden channels per value, attention and norms out of
    the way.
    """
    values = sign * torch.linspace(0, 12, 4096).view(1, 64, 64, 1)
    zeros = HieraBlockWeights.build(lambda _, shape: torch.zeros(shape), count=0, C=2, D=2, F=2)
    found = []
    for value in values.flatten()[::61]:
        # the norm's scale is zero: the activation sees this bias alone
        weights = zeros.with_tensors(
            {"fc1.bias": torch.full((2,), value.item()), "fc2.weight": torch.eye(2)}
        )
        found.append(poisoned((torch.zeros(1, 1, 1, 2), weights, 1, 1, False), isa)[0, 0, 0, 0])
    x = values.flatten()[::61]
    exact = F.gelu(x.double())
    assert (torch.stack(found) - exact).abs().max() <= max(
        (F.gelu(x) - exact).abs().max(), 1.2e-7 * exact.abs().max()
    )


def test_any_strides() -> None:
    x, weights, *rest = case(*SHAPES["pooled"])
    spread = weights.mapped(lambda _, w: w.repeat_interleave(2, 0)[::2])
    assert torch.equal(
        hiera_block(x.transpose(1, 2).contiguous().transpose(1, 2), spread, *rest),
        hiera_block(x, weights, *rest),
    )


def test_nothing_to_do() -> None:
    x, weights, *rest = case(*SHAPES["pooled"])
    assert hiera_block(x[:0], weights, *rest).shape == (0, 8, 8, 24)
    assert hiera_block(x[:, :0], weights, *rest).shape == (2, 0, 8, 24)


def test_auto_is_the_native_kernel_on_a_cpu() -> None:
    given = case(*SHAPES["whole windows"])
    assert torch.equal(hiera_block(*given), hiera_block(*given, backend="cpu"))
    assert not torch.equal(hiera_block(*given), hiera_block(*given, backend="torch"))


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
def test_the_kernel_says_why_it_refuses(change: Callable[..., Case], reason: str) -> None:
    with pytest.raises(
        BackendError, match=rf"hiera_block: cpu refuses: .*{reason}.*Would run: torch"
    ):
        hiera_block(*change(*case(*SHAPES["pooled"])), backend="cpu")


@pytest.mark.parametrize(
    ("change", "words"),
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
def test_arguments_that_do_not_fit_are_named(change: Callable[..., Case], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        hiera_block(*change(*case(*SHAPES["pooled"])))


def test_the_binding_checks_for_itself(isa: str) -> None:
    x, w, heads, window, pool = case(*SHAPES["pooled"])

    def changed(name: str, change: Callable[[Tensor], Tensor]) -> HieraBlockWeights:
        return w.converted(lambda leaf, t: change(t) if leaf.name == name else t)

    wrong: Sequence[Case] = (
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
    for arguments in wrong:
        with pytest.raises(ValueError, match="expected"):
            given = module.HieraBlockWeights(arguments[1])
            module.hiera_block(
                arguments[0], given, torch.zeros(2, 8, 8, 24), *arguments[2:], 1e-6, 2, isa
            )
    with pytest.raises(ValueError, match="out: expected size 8 of dimension 1"):
        module.hiera_block(x, held(w), torch.zeros(2, 7, 8, 24), heads, window, pool, 1e-6, 2, isa)


def test_opcheck() -> None:
    for name in ("pooled", "global"):
        x, weights, *rest = case(*SHAPES[name])
        torch.library.opcheck(
            torch.ops.sam2_fast.hiera_block.default, (x, weights.flatten(), *rest, 1e-6)
        )


@pytest.mark.parametrize(
    "name", ["windows that stick out", "global, a part of a block", "head of 72"]
)
def test_the_result_may_take_the_place_of_the_input(name: str) -> None:
    x, weights, *rest = case(*SHAPES[name], batch=3)
    expected, given = hiera_block(x, weights, *rest), x.clone()
    found = hiera_block(given, weights, *rest, overwrite=True)
    assert torch.equal(found, expected) and found.data_ptr() == given.data_ptr()


def test_pooled_strided_or_reference_blocks_leave_the_input_alone() -> None:
    pooled, whole = case(*SHAPES["pooled"]), case(*SHAPES["whole windows"])
    turned = whole[0].transpose(1, 2).contiguous().transpose(1, 2)
    for x, given, backend in (
        (pooled[0], pooled, "auto"),
        (turned, whole, "auto"),
        (whole[0], whole, "torch"),
    ):
        before = x.clone()
        hiera_block(x, *given[1:], backend=backend, overwrite=True)
        assert torch.equal(x, before)


def test_a_trunk_with_hooks_overwrites_nothing() -> None:
    trunk = Hiera(
        Sam2Config(embed_dim=16, stages=(1, 2, 1, 1), global_blocks=(), image_size=64)
    ).eval()
    images, seen = torch.randn(1, 3, 64, 64), []
    with torch.inference_mode():
        plain = [m.clone() for m in trunk(images)]
        trunk.blocks[1].register_forward_hook(
            lambda _module, _inputs, output: seen.append((output, output.clone()))
        )
        assert all(map(torch.equal, trunk(images), plain))
    assert torch.equal(*seen[0])


def test_gradients_flow_through_the_definition() -> None:
    block = Block(12, 24, 2, 4)
    block(torch.randn(1, 8, 8, 12)).sum().backward()
    assert all(p.grad is not None for p in block.parameters())


def test_narrower_sets_are_only_for_tests() -> None:
    x, weights, *rest = case(*SHAPES["pooled"])
    assert _native_block(x, weights, *rest, 1e-6, isa="portable").shape == (2, 8, 8, 24)


def of_hiera_block(pool: bool) -> cases.Case:
    x, weights, *rest = case(8, 8, 16, 32 if pool else 16, 2, 4, pool, batch=1)
    named = HieraBlockWeights.unflatten
    return cases.drawn(
        lambda x, *w, **how: hiera_block(x, named(w), *rest, **how), x, *weights.flatten()
    )


RECORDED: dict[str, Callable[[], cases.Case]] = {
    "hiera_block": lambda: of_hiera_block(False),
    "hiera_block, pooled": lambda: of_hiera_block(True),
}
