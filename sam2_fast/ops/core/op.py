"""An op, declared once: schema, definition, weights, backends and how it is recorded and proved."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sam2_fast.ops.core import registry
from sam2_fast.ops.core.native import no_cpu, no_cuda, no_triton
from sam2_fast.ops.core.registry import Implementation, Selected
from sam2_fast.ops.core.requirements import Request, Requirement
from sam2_fast.ops.core.weights import Weights
from sam2_fast.proving.rules import Rule, declare

_library = torch.library.Library("sam2_fast", "FRAGMENT")
_ABSENT: dict[str, Callable[[], str | None]] = {
    "cuda": no_cuda,
    "triton": no_triton,
    "cpu": no_cpu,
}


@dataclass(frozen=True)
class Backend:
    """What runs an op besides its definition."""

    name: str
    """ "cuda", "triton" or "cpu"."""
    run: Callable[..., Any]
    """Takes the arguments of the definition. Called only where `requires` is met."""
    requires: Sequence[Requirement]
    """Asked in this order; the first that is not met is the reason of a refusal."""
    kernels: tuple[str, ...] = ()
    """Names of the Triton kernels that it launches, without `_kernel`."""

    def refuses(self, request: Request) -> str | None:
        """Why it cannot run on the arguments of a call, or None."""
        reasons = (requirement(request) for requirement in self.requires)
        return next((reason for reason in reasons if reason is not None), None)


class Op:
    """An op. Making one registers its backends and the custom op `torch.ops.sam2_fast.<name>`."""

    def __init__(
        self,
        name: str,
        *,
        reference: Callable[..., Any],
        backends: Sequence[Backend] = (),
        schema: str | None = None,
        result: Callable[..., Any] | None = None,
        weights: type[Weights] | None = None,
        flatten: Callable[..., tuple[Any, ...]] | None = None,
        unflatten: Callable[..., tuple[Any, ...]] | None = None,
        rule: Rule | None = None,
        takes: Callable[..., bool] | None = None,
        fixed_by_values: str | None = None,
    ) -> None:
        """reference: the definition, in torch; its arguments are those of `schema` in order.

        schema: of the custom op, "(Tensor x, ...) -> Tensor"; None: there is none.
        result: empty results for the arguments of the custom op, as `register_fake` wants them.
        weights: the class of the argument `weights`, which the custom op takes as `Tensor[]`.
        flatten, unflatten: the arguments of the definition as those of the custom op, and back;
            None: only `weights` differ.
        rule: how calls are told apart and proved; None: by dtypes, shapes without
            the batch, and numbers (`any_configuration`).
        takes, fixed_by_values: as `registry.record_as`.
        """
        self.name = name
        self._weights = weights
        self._place = -1 if schema is None else _place_of_weights(schema)
        self._flatten = flatten or self._with_list
        self._unflatten = unflatten or self._with_weights
        if self._place >= 0 and weights is None and unflatten is None:
            raise ValueError(f"{name}: expected the class of its weights")
        for backend in backends:
            registry.register(
                Implementation(
                    name,
                    backend.name,
                    backend.run,
                    backend.refuses,
                    _ABSENT[backend.name],
                    backend.kernels,
                )
            )
        registry.register(Implementation(name, "torch", reference, lambda *_: None))
        if rule is not None:
            declare(name, rule)
        call = None if schema is None else self._custom_op(schema, result)
        registry.record_as(name, call, takes, fixed_by_values)

    def __call__(self, backend: str, *arguments: Any) -> Any:
        """Run it on the backend that is named, or for "auto" on the first that can."""
        return registry.execute(self.name, backend, *arguments)

    def select(self, backend: str, *arguments: Any, **named: Any) -> Selected:
        """What would run it; see `registry.select`."""
        return registry.select(self.name, backend, *arguments, **named)

    def _custom_op(self, schema: str, result: Callable[..., Any] | None) -> Callable[..., Any]:
        if result is None:
            raise ValueError(f"{self.name}: expected `result` where there is a schema")

        def dispatch(*arguments: Any) -> Any:
            given = self._unflatten(*arguments)
            return _contiguous(registry.choose(self.name, "auto", *given).run(*given))

        _library.define(f"{self.name}{schema}")
        _library.impl(self.name, dispatch, "CompositeExplicitAutograd")
        torch.library.register_fake(f"sam2_fast::{self.name}", result, lib=_library)
        packet = getattr(torch.ops.sam2_fast, self.name)
        return lambda *arguments: packet(*self._flatten(*arguments))

    def _with_list(self, *arguments: Any) -> tuple[Any, ...]:
        return tuple(x.flatten() if isinstance(x, Weights) else x for x in arguments)

    def _with_weights(self, *arguments: Any) -> tuple[Any, ...]:
        place = self._place
        if self._weights is None or place < 0:
            return arguments
        weights = self._weights.unflatten(arguments[place])
        return *arguments[:place], weights, *arguments[place + 1 :]


def _place_of_weights(schema: str) -> int:
    """Which argument is `Tensor[] weights`; -1 without it."""
    names = re.findall(r"(\w+)(?=[,)])", schema.split("->")[0])
    return names.index("weights") if "weights" in names else -1


def _contiguous(result: Any) -> Any:
    if isinstance(result, torch.Tensor):
        return result.contiguous()
    return tuple(part.contiguous() for part in result)
