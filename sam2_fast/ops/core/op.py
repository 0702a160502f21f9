"""An op in one declaration: schema, definition, weights, backends, recording and proof."""

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
from sam2_fast.ops.core.weights import Weights, layout
from sam2_fast.proving.rules import Rule, declare

_library = torch.library.Library("sam2_fast", "FRAGMENT")
_ABSENT: dict[str, Callable[[], str | None]] = {
    "cuda": no_cuda,
    "triton": no_triton,
    "cpu": no_cpu,
}


@dataclass(frozen=True)
class Backend:
    """An implementation of an op besides its definition."""

    name: str
    """ "cuda", "triton" or "cpu"."""
    run: Callable[..., Any]
    """Has the arguments of the definition. Called only if all of `requires` are met."""
    requires: Sequence[Requirement]
    """Checked in this order; the first that is not met gives the reason of the refusal."""
    kernels: tuple[str, ...] = ()
    """Names of the Triton kernels that it launches, without the suffix `_kernel`."""

    def refuses(self, request: Request) -> str | None:
        """Why it cannot run on the arguments of a call, or None."""
        reasons = (requirement(request) for requirement in self.requires)
        return next((reason for reason in reasons if reason is not None), None)


class Op:
    """An op. Creating it registers its backends and the custom op `torch.ops.sam2_fast.<name>`."""

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
        """Register the op.

        reference: the definition, in torch; its arguments are those of `schema` in order.
        schema: of the custom op, "(Tensor x, ...) -> Tensor", or None for no custom op.
        result: returns empty results for the arguments of the custom op, for `register_fake`.
        weights: the class of the argument `weights`, which is `Tensor[]` in the custom op. None for
            an op without weights.
        flatten, unflatten: convert arguments of the definition to those of the custom op, and back;
            None: only `weights` are converted.
        rule: which calls share one proof, and how it is done; None: `any_configuration`, which
            compares dtypes, shapes without the batch, and numbers.
        takes, fixed_by_values: see `registry.record_as`.
        """
        if weights is not None:
            layout(weights)  # cached now, because torch.compile cannot trace `dataclasses.fields`
        self.name = name
        self._weights = weights
        self._weights_index = -1 if schema is None else _index_of_weights(schema)
        self._flatten = flatten or self._flatten_weights
        self._unflatten = unflatten or self._unflatten_weights
        if self._weights_index >= 0 and weights is None and unflatten is None:
            raise ValueError(
                f"{name}: weights: expected the class of `Tensor[] weights` in the schema, got None"
            )
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
        """Run on the named backend, or with "auto" on the first one that can run."""
        return registry.execute(self.name, backend, *arguments)

    def select(self, backend: str, *arguments: Any, **named: Any) -> Selected:
        """The implementation that would run, and its arguments; see `registry.select`."""
        return registry.select(self.name, backend, *arguments, **named)

    def _custom_op(self, schema: str, result: Callable[..., Any] | None) -> Callable[..., Any]:
        if result is None:
            raise ValueError(
                f"{self.name}: result: expected a function, since there is a schema, got None"
            )

        def dispatch(*arguments: Any) -> Any:
            inputs = self._unflatten(*arguments)
            return _contiguous(registry.choose(self.name, "auto", *inputs).run(*inputs))

        _library.define(f"{self.name}{schema}")
        _library.impl(self.name, dispatch, "CompositeExplicitAutograd")
        torch.library.register_fake(f"sam2_fast::{self.name}", result, lib=_library)
        packet = getattr(torch.ops.sam2_fast, self.name)
        return lambda *arguments: packet(*self._flatten(*arguments))

    def _flatten_weights(self, *arguments: Any) -> tuple[Any, ...]:
        return tuple(x.flatten() if isinstance(x, Weights) else x for x in arguments)

    def _unflatten_weights(self, *arguments: Any) -> tuple[Any, ...]:
        index = self._weights_index
        if self._weights is None or index < 0:
            return arguments
        weights = self._weights.unflatten(arguments[index])
        return *arguments[:index], weights, *arguments[index + 1 :]


def _index_of_weights(schema: str) -> int:
    """The index of the argument `Tensor[] weights`, or -1."""
    names = re.findall(r"(\w+)(?=[,)])", schema.split("->")[0])
    return names.index("weights") if "weights" in names else -1


def _contiguous(result: Any) -> Any:
    if isinstance(result, torch.Tensor):
        return result.contiguous()
    return tuple(part.contiguous() for part in result)
