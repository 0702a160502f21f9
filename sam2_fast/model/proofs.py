"""Whether a model's kernels must prove themselves: the model says, and its methods hold to it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch

from sam2_fast.proving import off

P = ParamSpec("P")
Result = TypeVar("Result")
Model = TypeVar("Model", bound=Any)


def as_asked(
    method: Callable[Concatenate[Model, P], Result],
) -> Callable[Concatenate[Model, P], Result]:
    """The method of a model; kernels run in it without a proof where `model.prove` is False."""

    @functools.wraps(method)
    def run(self: Model, *args: P.args, **kwargs: P.kwargs) -> Result:
        if self.prove or torch.compiler.is_compiling():  # a compiler sees definitions, no kernels
            return method(self, *args, **kwargs)
        with off():
            return method(self, *args, **kwargs)

    return run
