"""What `Errors` lets pass."""

from __future__ import annotations

import pytest
import torch

from tests.ops.errors import Errors


def judged(*multiples: float) -> None:
    """Draws on which a kernel errs so many times as much as torch."""
    exact, errors = torch.linspace(1, 2, 100, dtype=torch.float64), Errors()
    for multiple in multiples:
        torchs = exact.float() + 1e-4
        errors.add([(exact + 1e-4 * multiple).float()], [torchs], [exact])
    errors.check()


@pytest.mark.parametrize("multiples", [(0.0,), (1.0, 1.0), (5.0, 0.9, 1.1, 0.7), (0.0, 1.9, 2.0)])
def test_what_errs_as_torch_does_passes(multiples: tuple[float, ...]) -> None:
    judged(*multiples)


@pytest.mark.parametrize(
    "multiples",
    [(2.1,), (1.0, 9.0, 1.0, 1.0), (0.0, 0.0, 0.0, 64.0), (0.0, 7.0, 7.0), (1.0, float("nan")), ()],
    ids=["too much", "one draw", "one among exact ones", "luck", "no number", "nothing"],
)
def test_what_errs_more_fails(multiples: tuple[float, ...]) -> None:
    with pytest.raises(AssertionError):
        judged(*multiples)
