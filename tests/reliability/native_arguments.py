"""Hostile arguments for the functions of the native module.

Run as a program with the name of a function: calls it with each argument replaced by hostile
values, and prints every exception that is not documented. A crash ends the process by a signal.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sam2_fast.image.predictor import SAM2ImagePredictor
from tests.ops import test_bindings
from tests.reliability.image_models import CLICK, picture, shared_model

FUNCTIONS = (
    *("hiera_block", "window_attention", "rope_attention", "memory_attention"),
    *("connected_components", "mask_postprocess", "preprocess"),
)
DOCUMENTED = (ValueError, TypeError, RuntimeError, MemoryError, BufferError)
INTEGERS = (-1, 0, 10**6, 2**31 - 1, 2**31, -(2**31), 2**63 - 1, 2**70)
OTHERS = (None, "x", 1.5, float("nan"), [], [1], {}, object(), True, np.zeros(3))


def read_only(like: Tensor) -> Tensor:
    """A tensor in memory that cannot be written, of zeros."""
    count = max(1, like.numel() * like.element_size())
    memory = mmap.mmap(-1, count, prot=mmap.PROT_READ)
    return torch.frombuffer(memory, dtype=like.dtype, count=like.numel()).view(like.shape)


def tensors(like: Tensor) -> Iterator[tuple[str, Any]]:
    """Hostile replacements of a tensor, by name."""
    for dtype in (torch.float64, torch.int64, torch.complex64, torch.bool, torch.float16):
        yield str(dtype), like.to(dtype)
    yield "transposed", like.transpose(0, -1)
    yield "strided", torch.cat([like, like], -1)[..., ::2]
    yield "expanded", like[:1].expand(like.shape)
    yield "empty", like[:0]
    yield "longer", torch.cat([like, like])
    yield "flat", like.flatten()
    yield "scalar", torch.zeros((), dtype=like.dtype)
    yield "meta", like.to("meta")
    yield "sparse", like.to_sparse()
    yield "negated", torch._neg_view(like) if like.dtype != torch.bool else like
    yield "parameter", torch.nn.Parameter(like) if like.is_floating_point() else like
    yield "read-only", read_only(like)
    yield "numpy", like.float().numpy()


def lists(like: list[Any]) -> Iterator[tuple[str, Any]]:
    """Hostile replacements of a list, by name."""
    yield "shorter", like[:-1]
    yield "longer", [*like, *like]
    for value in (*INTEGERS, None, torch.zeros(2)):
        yield f"first is {value!r}", [value, *like[1:]]


def replacements(value: Any) -> Iterator[tuple[str, Any]]:
    """Hostile replacements of an argument, by name."""
    if isinstance(value, Tensor):
        yield from tensors(value)
    if isinstance(value, list):
        yield from lists(value)
    for other in (*INTEGERS, *OTHERS):
        yield repr(other)[:40], other


def by_the_model(module: Any) -> None:
    """Kernels that a click and a memory map run."""
    for op in ("mask_decoder", "memory_encoder"):
        kernels: Any = import_module(f"sam2_fast.ops.{op}")
        kernels.native = lambda: module
    model = shared_model()
    image_predictor = SAM2ImagePredictor(model)
    image_predictor.set_image(picture())
    with torch.no_grad():
        image_predictor.predict(**CLICK)
        zeros = torch.zeros
        model.encode_memory(zeros(1, 256, 4, 4), zeros(1, 1, 64, 64), zeros(1, 1), True)


def calls_of_ops() -> Iterator[tuple[str, Callable[..., None]]]:
    """`call_native` of the tests of ops, by the name of the op."""
    for path in Path(test_bindings.__file__).parent.glob("test_*.py"):
        if "def call_native(" in path.read_text(encoding="utf-8"):
            yield (
                path.stem.removeprefix("test_"),
                import_module(f"tests.ops.{path.stem}").call_native,
            )


def small_components(module: Any) -> None:
    masks = torch.ones(1, 4, 4, dtype=torch.bool)
    module.small_components(masks=masks, small=~masks, max_area=2, num_threads=1)


CALLS: dict[str, Callable[..., None]] = {
    **{name: getattr(test_bindings, name) for name in FUNCTIONS},
    **dict(calls_of_ops()),
    "small_components": small_components,
    "mask_decoder": by_the_model,
    "memory_encoder": by_the_model,
}


class Recorded:
    """The native module; notes the arguments of the last call of each function."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self.arguments: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._module, name)
        if isinstance(value, type) or name not in CALLS:
            return value

        def call(*positional: Any, **named: Any) -> None:
            self.arguments[name] = positional, named

        return call


def attack(name: str) -> list[str]:
    """Call a function with hostile arguments; returns what is not documented."""
    from sam2_fast import _C

    recorded = Recorded(_C)
    CALLS[name](recorded)
    function = getattr(_C, name)
    usual_positional, usual_named = recorded.arguments[name]
    arguments: dict[Any, Any] = {**dict(enumerate(usual_positional)), **usual_named}
    findings = []
    for key, value in arguments.items():
        for label, hostile in replacements(value):
            changed = {**arguments, key: hostile}
            positional = [changed[i] for i in range(len(usual_positional))]
            named = {k: v for k, v in changed.items() if not isinstance(k, int)}
            print(name, key, label, file=sys.stderr, flush=True)
            try:
                function(*positional, **named)
            except DOCUMENTED:
                continue
            except Exception as error:  # noqa: BLE001 - any other class is a finding
                findings.append(f"{name} {key} {label}: {type(error).__name__}: {error}")
    return findings


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in attack(sys.argv[1]):
        print(line)
