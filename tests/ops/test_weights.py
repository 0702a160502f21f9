"""What backends derive from weights is computed once, and again after a change."""

from __future__ import annotations

import pytest
import torch

from sam2_fast.ops.core import cache as module
from sam2_fast.ops.core.cache import Kept, Weights, derive


def made(parameters: list[torch.Tensor]) -> tuple[Weights, list[int]]:
    kept: Kept[dict[str, object]] = Kept()
    return Weights(parameters, kept, parameters), []


def test_it_is_computed_once_for_each_name_and_selection() -> None:
    parameters = [torch.ones(2), torch.ones(3)]
    weights, calls = made(parameters)

    def make() -> int:
        calls.append(1)
        return len(calls)

    assert [derive(weights, "a", make), derive(weights, "a", make), derive(weights, "b", make)] == [1, 1, 2]
    some = weights.with_tensors(parameters[:1], "first")
    assert list(some) == parameters[:1]
    assert [derive(some, "a", make), derive(some, "a", make), derive(weights, "a", make)] == [3, 3, 1]
    assert derive(list(weights), "a", make) == 4, "a plain list keeps nothing"


def test_it_is_computed_again_after_a_write_and_never_kept_where_gradients_are_wanted() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    weights, calls = made([parameter])

    def make() -> float:
        calls.append(1)
        return float(parameter.detach().sum())

    with torch.no_grad():
        assert derive(weights, "sum", make) == derive(weights, "sum", make) == 2.0
        parameter.mul_(3)
        assert derive(weights, "sum", make) == 6.0
    assert len(calls) == 2
    assert derive(weights, "sum", make) == derive(weights, "sum", make) == 6.0
    assert len(calls) == 4


def test_what_is_only_captured_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, _ = made([torch.ones(2)])
    assert derive(weights, "before", lambda: 1) == 1
    number = Kept.made
    monkeypatch.setattr(module, "capturing", lambda tensor: True)
    assert derive(weights, "before", lambda: 2) == 1
    assert derive(weights, "during", lambda: 3) == 3
    monkeypatch.undo()
    assert derive(weights, "during", lambda: 4) == 4
    assert Kept.made != number, "other streams have to wait for it"
