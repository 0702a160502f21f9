"""Which implementations of an op exist, and why one cannot run: explicit, with reasons, never a silent fall-back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

ORDER = ("cuda", "triton", "cpu", "torch")
"""The order in which `auto` asks. `torch` is the reference and refuses nothing."""

STEMS = (
    "connected_components",
    "hiera_block",
    "mask_decoder",
    "mask_postprocess",
    "memory_attention",
    "memory_encoder",
    "nms",
    "preprocess",
    "rope_attention",
    "window_attention",
)
"""Ops with native kernels; their modules register implementations on import."""


class BackendError(RuntimeError):
    """A backend that was asked for by name cannot run; the message says why and what would."""


@dataclass(frozen=True)
class Implementation:
    """One op on one backend. `refuses` returns the reason why it cannot take these arguments, or None."""

    op: str
    backend: str
    run: Callable[..., Any]
    refuses: Callable[..., str | None]


@dataclass(frozen=True)
class Status:
    """One row of the table that `sam2-fast info` prints."""

    op: str
    backend: str
    reason: str | None  # None: available

    @property
    def available(self) -> bool:
        """Whether the backend can run on this machine."""
        return self.reason is None


_implementations: dict[tuple[str, str], Implementation] = {}
_absent: dict[tuple[str, str], Callable[[], str | None]] = {}


def register(implementation: Implementation, absent: Callable[[], str | None]) -> None:
    """Add an implementation. `absent` says why the machine lacks it altogether, or None."""
    if implementation.backend not in ORDER:
        raise ValueError(f"backend: expected one of {ORDER}, got {implementation.backend!r}")
    _implementations[implementation.op, implementation.backend] = implementation
    _absent[implementation.op, implementation.backend] = absent


def choose(op: str, backend: str, *arguments: Any) -> Implementation:
    """The implementation that runs: the named one or a `BackendError` with its reason; for "auto" the first that does not refuse."""
    if backend != "auto" and backend not in ORDER:
        raise ValueError(f"backend: expected 'auto' or one of {ORDER}, got {backend!r}")
    reasons = {}
    for name in ORDER:
        implementation = _implementations.get((op, name))
        if implementation is None:
            reasons[name] = f"{op} has no {name} implementation"
            continue
        reason = _absent[op, name]() or implementation.refuses(*arguments)
        if reason is None and backend in ("auto", name):
            return implementation
        reasons[name] = reason or ""
    willing = next((name for name in ORDER if reasons[name] == ""), "none")
    raise BackendError(f"{op}: {backend} refuses: {reasons[backend]}. Would run: {willing}")


def preferred(op: str) -> Implementation | None:
    """What "auto" runs for arguments that every implementation takes: the first that is not absent."""
    found = ((_implementations.get((op, name)), _absent.get((op, name))) for name in ORDER)
    return next((one for one, absent in found if one and absent and absent() is None), None)


def registered() -> list[object]:
    """All that `choose` goes by. Where two such lists are equal, it chose from the same implementations."""
    return [*_implementations.values(), *_absent.values()]


def backends() -> list[Status]:
    """Every op x backend with the reason why it is not there, for this machine and this build."""
    for stem in STEMS:
        import_module(f"sam2_fast.ops.{stem}")
    return [Status(op, backend, _absent[op, backend]()) for op, backend in _sorted()]


def _sorted() -> Iterator[tuple[str, str]]:
    return iter(sorted(_implementations, key=lambda key: (key[0], ORDER.index(key[1]))))


def table() -> str:
    """`backends()` as text, a line each."""
    return "\n".join(f"{s.op:24} {s.backend:8} {'yes' if s.available else 'no: ' + str(s.reason)}" for s in backends())


if __name__ == "__main__":
    import sys

    # the module run as a script is another object than the one that ops register with
    sys.stdout.write(import_module("sam2_fast.ops.registry").table() + "\n")
