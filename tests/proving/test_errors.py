"""When a result is right: torch's own error is the measure."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from sam2_fast.ops.core.weights import Linear
from sam2_fast.proving.case import exact_dtype
from sam2_fast.proving.errors import cast, judge
from sam2_fast.proving.rules import Call, tensors_in

EXACT = torch.linspace(-3, 3, 4000, dtype=torch.float64).sin() * 8
TORCHS = (EXACT + 1e-2 * (EXACT * 1e4).cos()).to(torch.bfloat16)


def noisy(times: float) -> Tensor:
    error = TORCHS.double() - EXACT
    return (EXACT + times * error.roll(1)).to(torch.bfloat16)


@pytest.mark.parametrize(("times", "right"), [(0.0, True), (1.0, True), (1.6, True), (3.0, False)])
def test_errors_up_to_twice_torchs_are_right(times: float, right: bool) -> None:
    outcome = judge(noisy(times), TORCHS, EXACT)
    assert (outcome.reason is None) == right
    assert outcome.error is not None and (outcome.error <= 2) == right


def test_one_wrong_number_of_many_is_found() -> None:
    result = EXACT.to(torch.bfloat16)
    result[1234] += 1
    outcome = judge(result, TORCHS, EXACT)
    assert outcome.error is not None and outcome.error < 2
    assert "times torch's largest" in (outcome.reason or "")


def test_where_torch_is_exact_rounding_is_the_measure() -> None:
    exact = torch.linspace(0, 1, 100, dtype=torch.float64)
    narrow = exact.to(torch.bfloat16)
    assert judge(narrow, narrow, exact).reason is None
    whole = torch.arange(100.0)
    assert judge(whole, whole, whole.double()).error == 0
    assert judge(whole + 1e-4, whole, whole.double()).reason is not None


@pytest.mark.parametrize(
    ("result", "same"),
    [
        ((torch.arange(5), np.arange(3), 7), True),
        ((torch.arange(5) + 1, np.arange(3), 7), False),
        ((torch.arange(5), np.arange(3) + 1, 7), False),
        ((torch.arange(5), np.arange(3), 8), False),
        ((torch.arange(5), np.arange(3)), False),
        ((torch.arange(5, dtype=torch.int32), np.arange(3), 7), False),
        ((torch.arange(5), np.arange(4), 7), False),
    ],
)
def test_what_is_not_rounded_is_equal(result: Any, same: bool) -> None:
    expected = (torch.arange(5), np.arange(3), 7)
    assert (judge(result, expected, expected).reason is None) == same


def test_empty_results_are_equal() -> None:
    nothing = torch.zeros(0, 4)
    assert judge(nothing, nothing, nothing.double()) == (None, 0.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_wrong(value: float) -> None:
    result = noisy(1.0)
    result[7] = value
    assert "not finite" in (judge(result, TORCHS, EXACT).reason or "")


class Pair(NamedTuple):
    first: Tensor
    rest: list[Tensor]


def test_arguments_are_widened_wherever_they_are() -> None:
    given = (
        torch.ones(1),
        Linear(torch.ones(2, 1), torch.ones(2)),
        {"x": Pair(torch.ones(3), [torch.ones(4)])},
        5,
    )
    found = cast((*given, torch.arange(3)), torch.float64)
    assert [x.dtype for x in tensors_in(found)] == [torch.float64] * 5 + [torch.int64]
    assert [len(x) for x in tensors_in(found)] == [1, 2, 2, 3, 4, 3]
    assert isinstance(found[1], Linear) and isinstance(found[2]["x"], Pair) and found[3] == 5
    assert all(x.dtype == torch.float32 for x in tensors_in(given))


CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("dtype", "device", "expected"),
    [
        (torch.bfloat16, CUDA, torch.float32),
        (torch.float16, CUDA, torch.float32),
        (torch.float32, CUDA, torch.float64),
        (torch.bfloat16, torch.device("cpu"), torch.float64),
    ],
)
def test_the_reference_is_wider(
    dtype: torch.dtype, device: torch.device, expected: torch.dtype
) -> None:
    call = Call((torch.zeros(2, dtype=dtype), [torch.zeros(2)]), {})
    assert exact_dtype(call, device) == expected


def test_the_reference_is_wider_where_the_caller_allows_tf32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    call = Call((torch.zeros(2, dtype=torch.bfloat16),), {})
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        assert exact_dtype(call, CUDA) == torch.float64
        assert torch.backends.cuda.matmul.fp32_precision == "tf32", "read, not set"
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    assert exact_dtype(call, CUDA, convolutions=True) == torch.float64, "cuDNN's default is TF32"
