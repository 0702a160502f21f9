"""Which errors the class `Errors` accepts."""

from __future__ import annotations

import pytest
import torch

from tests.ops.errors import Errors


def check_draws(*multiples: float) -> None:
    """Check draws on which a kernel errs these multiples of torch's error."""
    exact, errors = torch.linspace(1, 2, 100, dtype=torch.float64), Errors()
    for multiple in multiples:
        reference = exact.float() + 1e-4
        errors.add([(exact + 1e-4 * multiple).float()], [reference], [exact])
    errors.check()


@pytest.mark.parametrize("multiples", [(0.0,), (1.0, 1.0), (5.0, 0.9, 1.1, 0.7), (0.0, 1.9, 2.0)])
def test_errors_similar_to_those_of_torch_pass(multiples: tuple[float, ...]) -> None:
    check_draws(*multiples)


@pytest.mark.parametrize(
    "multiples",
    [(2.1,), (1.0, 9.0, 1.0, 1.0), (0.0, 0.0, 0.0, 64.0), (0.0, 7.0, 7.0), (1.0, float("nan")), ()],
    ids=[
        "mean too large",
        "one draw too large",
        "one draw among exact ones",
        "two draws among exact ones",
        "NaN",
        "no draws",
    ],
)
def test_larger_errors_fail(multiples: tuple[float, ...]) -> None:
    with pytest.raises(AssertionError):
        check_draws(*multiples)
