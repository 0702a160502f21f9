"""Switching off the proofs of kernels for one model."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch

from sam2_fast.proving import off

P = ParamSpec("P")
Result = TypeVar("Result")
Model = TypeVar("Model", bound=Any)


def respects_prove(
    method: Callable[Concatenate[Model, P], Result],
) -> Callable[Concatenate[Model, P], Result]:
    """Decorator of a model's method: kernels run without a proof if `model.prove` is False."""

    @functools.wraps(method)
    def run(self: Model, *args: P.args, **kwargs: P.kwargs) -> Result:
        # While torch compiles, no kernel runs: it traces the references of ops.
        if self.prove or torch.compiler.is_compiling():
            return method(self, *args, **kwargs)
        with off():
            return method(self, *args, **kwargs)

    return run
