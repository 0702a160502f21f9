"""Results are judged by torch's own error in the same dtype."""

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
TORCH_RESULT = (EXACT + 1e-2 * (EXACT * 1e4).cos()).to(torch.bfloat16)


def noisy_result(factor: float) -> Tensor:
    """A result whose error is `factor` times that of torch."""
    error = TORCH_RESULT.double() - EXACT
    return (EXACT + factor * error.roll(1)).to(torch.bfloat16)


FACTORS = [(0.0, True), (1.0, True), (1.6, True), (3.0, False)]


@pytest.mark.parametrize(("factor", "is_right"), FACTORS)
def test_errors_of_at_most_twice_torchs_are_accepted(factor: float, is_right: bool) -> None:
    outcome = judge(noisy_result(factor), TORCH_RESULT, EXACT)
    assert (outcome.reason is None) == is_right
    assert outcome.error is not None and (outcome.error <= 2) == is_right


def test_a_single_wrong_value_is_detected() -> None:
    result = EXACT.to(torch.bfloat16)
    result[1234] += 1
    outcome = judge(result, TORCH_RESULT, EXACT)
    assert outcome.error is not None and outcome.error < 2
    assert "times torch's largest" in (outcome.reason or "")


def test_rounding_is_allowed_if_torch_is_exact() -> None:
    exact = torch.linspace(0, 1, 100, dtype=torch.float64)
    rounded = exact.to(torch.bfloat16)
    assert judge(rounded, rounded, exact).reason is None
    whole = torch.arange(100.0)
    assert judge(whole, whole, whole.double()).error == 0
    assert judge(whole + 1e-4, whole, whole.double()).reason is not None


@pytest.mark.parametrize(
    ("result", "is_equal"),
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
def test_integers_must_be_equal(result: Any, is_equal: bool) -> None:
    expected = (torch.arange(5), np.arange(3), 7)
    assert (judge(result, expected, expected).reason is None) == is_equal


def test_empty_results_are_equal() -> None:
    empty = torch.zeros(0, 4)
    assert judge(empty, empty, empty.double()) == (None, 0.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_wrong(value: float) -> None:
    result = noisy_result(1.0)
    result[7] = value
    assert "not finite" in (judge(result, TORCH_RESULT, EXACT).reason or "")


class Pair(NamedTuple):
    first: Tensor
    rest: list[Tensor]


def test_cast_converts_tensors_in_nested_arguments() -> None:
    arguments = (
        torch.ones(1),
        Linear(torch.ones(2, 1), torch.ones(2)),
        {"x": Pair(torch.ones(3), [torch.ones(4)])},
        5,
    )
    converted = cast((*arguments, torch.arange(3)), torch.float64)
    assert [x.dtype for x in tensors_in(converted)] == [torch.float64] * 5 + [torch.int64]
    assert [len(x) for x in tensors_in(converted)] == [1, 2, 2, 3, 4, 3]
    assert isinstance(converted[1], Linear)
    assert isinstance(converted[2]["x"], Pair)
    assert converted[3] == 5
    assert all(x.dtype == torch.float32 for x in tensors_in(arguments))


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
def test_the_reference_has_a_more_precise_dtype(
    dtype: torch.dtype, device: torch.device, expected: torch.dtype
) -> None:
    call = Call((torch.zeros(2, dtype=dtype), [torch.zeros(2)]), {})
    assert exact_dtype(call, device) == expected


def test_the_reference_is_float64_if_the_caller_allows_tf32() -> None:
    call = Call((torch.zeros(2, dtype=torch.bfloat16),), {})
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        assert exact_dtype(call, CUDA) == torch.float64
        assert torch.backends.cuda.matmul.fp32_precision == "tf32", "the setting was changed"
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    assert exact_dtype(call, CUDA, convolutions=True) == torch.float64, "cuDNN's default is TF32"
