"""Rotary attention: errors of every instruction set against the definition in float64, and the
behaviour of the public function.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sam2_fast.ops.core.native import native
from sam2_fast.ops.core.registry import BackendError
from sam2_fast.ops.rope_attention import (
    _native_rope,
    rope_attention,
    rope_attention_reference,
    rope_table,
)
from tests.ops import cases
from tests.ops.errors import Errors

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def case(
    side: int,
    maps: int,
    unrotated: int,
    dim: int = 64,
    value: int = 16,
    batch: int = 2,
    scale: float = 1.0,
    draw: int = 0,
) -> tuple[Tensor, ...]:
    """q, k, v, table. A large `scale` makes attention peaked."""
    generator = torch.Generator().manual_seed(side * 100 + maps + 10000 * draw)
    keys = maps * side * side + unrotated
    q, k, v = (
        torch.randn(batch, n, c, generator=generator)
        for n, c in ((side * side, dim), (keys, dim), (keys, value))
    )
    return q * scale, k, v, rope_table(dim, side)


def native_output(
    arguments: tuple[Tensor, ...], unrotated: int, isa: str, threads: int = 2
) -> Tensor:
    """The output of the native kernel, written to memory that is full of NaN."""
    q, v = arguments[0], arguments[2]
    out = torch.full((q.shape[0], q.shape[1], v.shape[2]), torch.nan, dtype=q.dtype)
    module = native()
    assert module is not None
    module.rope_attention(*arguments, out, unrotated, threads, isa)
    return out


def draws(side: int, value: int, scale: float = 1.0) -> int:
    """The number of draws from which the typical error is estimated.

    Few numbers need more, and so does peaked attention, in which few keys have any weight.
    """
    if side * side * value < 100:
        return 16
    return 8 if scale > 4 else 2


def error(output: Tensor, exact: Tensor) -> float:
    """Root mean square error."""
    return (output.double() - exact).square().mean().sqrt().item()


@pytest.mark.proves("reference", "rope_attention:cpu")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [1.0, 4.0, 16.0], ids="scale {}".format)
@pytest.mark.parametrize(
    ("side", "maps", "unrotated", "dim", "value"),
    [
        (8, 3, 16, 256, 64),
        (9, 2, 5, 64, 16),
        (16, 1, 0, 256, 256),
        (8, 0, 7, 64, 64),
        (3, 7, 1, 20, 1),
        (1, 1, 0, 4, 3),
    ],
)
def test_errs_at_most_twice_as_much_as_torch(
    isa: str,
    dtype: torch.dtype,
    scale: float,
    side: int,
    maps: int,
    unrotated: int,
    dim: int,
    value: int,
) -> None:
    errors = Errors()
    for draw in range(draws(side, value, scale)):
        *inputs, table = case(side, maps, unrotated, dim, value, scale=scale, draw=draw)
        q, k, v = (x.to(dtype) for x in inputs)
        in_float64 = (x.double() for x in (q, k, v, table))
        exact = rope_attention_reference(*in_float64, unrotated)
        reference = rope_attention_reference(q, k, v, table, unrotated)
        errors.add([native_output((q, k, v, table), unrotated, isa)], [reference], [exact])
    errors.check()


def test_results_do_not_depend_on_threads_or_the_run_or_the_other_objects(isa: str) -> None:
    q, k, v, table = case(12, 2, 9, 64, 64, batch=3)
    expected = native_output((q, k, v, table), 9, isa, threads=1)
    for threads in (1, 2, 3, 7):
        assert torch.equal(native_output((q, k, v, table), 9, isa, threads), expected)
    for i in range(3):
        one_object = (q[i : i + 1], k[i : i + 1], v[i : i + 1], table)
        assert torch.equal(native_output(one_object, 9, isa), expected[i : i + 1])


def test_nan_affects_its_query_or_all_queries_of_its_key(isa: str) -> None:
    q, k, v, table = case(8, 2, 3)
    clean = native_output((q, k, v, table), 3, isa)
    q[0, 5, 1] = torch.nan
    k[1, 70, 2] = torch.nan
    output = native_output((q, k, v, table), 3, isa)
    assert output[0, 5].isnan().all() and output[1].isnan().all()
    others = torch.arange(64) != 5
    assert torch.equal(output[0, others], clean[0, others])


def test_large_scores_neither_overflow_nor_underflow(isa: str) -> None:
    q, k, v, table = case(8, 2, 3, scale=1e4)
    exact = rope_attention_reference(q.double(), k.double(), v.double(), table.double(), 3)
    output = native_output((q, k, v, table), 3, isa)
    torch_error = error(rope_attention_reference(q, k, v, table, 3), exact)
    assert torch.isfinite(output).all() and error(output, exact) <= 2 * torch_error


@pytest.mark.parametrize(
    "with_strides",
    [
        lambda x: x.repeat_interleave(2, 1)[:, ::2],
        lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    ],
)
def test_strides_do_not_change_results(with_strides: Callable[[Tensor], Tensor]) -> None:
    q, k, v, table = case(6, 2, 1)
    strided = (with_strides(x) for x in (q, k, v))
    assert torch.equal(rope_attention(*strided, table, 1), rope_attention(q, k, v, table, 1))


def test_empty_inputs_give_empty_outputs() -> None:
    table = rope_table(8, 2)
    assert rope_attention(
        torch.zeros(0, 4, 8), torch.zeros(0, 4, 8), torch.zeros(0, 4, 2), table
    ).shape == (0, 4, 2)
    assert rope_attention(
        torch.zeros(2, 0, 8), torch.zeros(2, 3, 8), torch.zeros(2, 3, 2), table[:, :0], 3
    ).shape == (2, 0, 2)


def test_auto_runs_the_native_kernel_on_a_cpu() -> None:
    inputs = case(6, 2, 1)
    output = rope_attention(*inputs, 1)
    assert torch.equal(output, rope_attention(*inputs, 1, backend="cpu"))
    assert not torch.equal(output, rope_attention(*inputs, 1, backend="torch"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda q, k, v, t: (q.double(), k.double(), v.double(), t.double()), "float64"),
        (lambda q, k, v, t: (q, k.half(), v, t), "float16"),
        (lambda q, k, v, t: (q.requires_grad_(), k, v, t), "gradients"),
        (lambda q, k, v, t: (q.to("meta"), k, v, t), "meta"),
    ],
)
def test_a_refusal_names_its_reason(change: Callable[..., tuple[Tensor, ...]], reason: str) -> None:
    with pytest.raises(
        BackendError, match=rf"rope_attention: cpu refuses: .*{reason}.*Would run: torch"
    ):
        rope_attention(*change(*case(2, 1, 0)), backend="cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, k, v, t: (q[0], k, v, t), "q: expected shape"),
        (lambda q, k, v, t: (q, k[:1], v, t), "k: expected shape"),
        (lambda q, k, v, t: (q, k[..., :8], v, t), "k, v: expected"),
        (lambda q, k, v, t: (q, k, v[:, :3], t), "k, v: expected"),
        (lambda q, k, v, t: (q, k, v, t[:, :2]), "table: expected"),
        (lambda q, k, v, t: (q, k[:, 1:], v[:, 1:], t), "whole maps of 4 tokens"),
    ],
)
def test_shapes_that_do_not_fit_are_named(
    change: Callable[..., tuple[Tensor, ...]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        rope_attention(*change(*case(2, 2, 0)))


def test_the_binding_checks_its_arguments(isa: str) -> None:
    q, k, v, table = case(2, 2, 0)
    for invalid in (
        (q[0], k, v, table),
        (q.double(), k, v, table),
        (q, k.half(), v, table),
        (q, k, v, table.double()),
        (q, k[:, 1:], v, table),
    ):
        with pytest.raises(ValueError, match="expected"):
            native_output(invalid, 0, isa)
    with pytest.raises(ValueError, match="isa: expected an instruction set up to"):
        native_output((q, k, v, table), 0, "mmx")


def test_opcheck_passes() -> None:
    for arguments, unrotated in ((case(3, 2, 2), 2), (case(2, 0, 3), 3)):
        torch.library.opcheck(torch.ops.sam2_fast.rope_attention.default, (*arguments, unrotated))


def test_gradients_flow_through_the_definition() -> None:
    q, k, v, table = case(3, 2, 2)
    q.requires_grad_()
    rope_attention(q, k, v, table, 2).sum().backward()
    assert q.grad is not None and q.grad.abs().sum() > 0


def test_autocast_of_the_caller_sets_the_dtype() -> None:
    q, k, v, table = case(3, 2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        output = rope_attention(q, k.bfloat16(), v, table, 2)
    assert torch.equal(output, rope_attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), table, 2))


def test_the_private_function_accepts_an_instruction_set() -> None:
    q, k, v, table = case(3, 2, 2)
    assert _native_rope(q, k, v, table, 2, "portable").shape == (2, 9, 16)


def rope_attention_case() -> cases.Case:
    return cases.case_of(
        lambda *t, **kwargs: rope_attention(*t, 2, **kwargs),
        *cases.random_tensors((2, 9, 8), (2, 20, 8), (2, 20, 4), (2, 9, 4)),
    )


RECORDED: dict[str, Callable[[], cases.Case]] = {"rope_attention": rope_attention_case}
