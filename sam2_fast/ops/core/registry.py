"""The implementations of ops and the choice between them. A backend never falls back silently."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sam2_fast.ops.core import tracing
from sam2_fast.ops.core.native import materialized
from sam2_fast.ops.core.requirements import Request
from sam2_fast.proving import gate

ORDER = ("cuda", "triton", "cpu", "torch")
"""The order in which "auto" tries backends. "torch" is the definition and takes any arguments."""


class BackendError(RuntimeError):
    """The named backend cannot run. The message has the reason and a backend that can."""


def always() -> None:
    """The value of `Implementation.absent` for an implementation that every machine has."""


@dataclass(frozen=True)
class Implementation:
    """One op on one backend."""

    op: str
    backend: str
    run: Callable[..., Any]
    refuses: Callable[[Request], str | None]
    """Why it cannot run on the arguments of a call, or None."""
    absent: Callable[[], str | None] = always
    """Why it cannot run on this machine at all, or None."""
    kernels: tuple[str, ...] = ()
    """Names of the Triton kernels that it launches, without the suffix `_kernel`."""


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


@dataclass(frozen=True)
class Node:
    """An op as one node of a graph: `call` runs the custom op, `takes` says for which arguments."""

    call: Callable[..., Any]
    takes: Callable[..., bool]


_implementations: dict[tuple[str, str], Implementation] = {}
_nodes: dict[str, Node] = {}
_fixed_by_values: dict[str, str] = {}


def register(implementation: Implementation) -> None:
    """Add an implementation."""
    if implementation.backend not in ORDER:
        raise ValueError(f"backend: expected one of {ORDER}, got {implementation.backend!r}")
    _implementations[implementation.op, implementation.backend] = implementation


def choose(op: str, backend: str, *arguments: Any) -> Implementation:
    """The implementation of the named backend, or for "auto" the first one that can run.

    Raises BackendError with the reason if the named backend cannot run. While operations are
    recorded, transformed or intercepted (`tracing.recording_reason`), only "torch" can. On a GPU a
    kernel must have passed its proof there; a kernel without a verdict is proved now, on these
    arguments (`proving.gate`).
    """
    return _choose(op, backend, tracing.recording_reason(), Request(arguments), {})


def _choose(
    op: str, backend: str, recording: str | None, request: Request, named: Mapping[str, Any]
) -> Implementation:
    if backend != "auto" and backend not in ORDER:
        raise ValueError(f"backend: expected 'auto' or one of {ORDER}, got {backend!r}")
    for name in ORDER if backend == "auto" else (backend,):
        if _refusal(op, name, recording, request, named) is None:
            return _implementations[op, name]
    refused = "torch" if backend == "auto" else backend
    reason = _refusal(op, refused, recording, request, named)
    usable = next(
        (name for name in ORDER if _refusal(op, name, recording, request, named) is None), "none"
    )
    raise BackendError(f"{op}: {backend} refuses: {reason}. Would run: {usable}")


@torch._disable_dynamo
def _run_between_graphs(op: str, backend: str, *arguments: Any, **more: Any) -> Any:
    """Run the implementation that `choose` returns, outside the graphs of torch.compile.

    torch.compile ends a graph before this call and starts another one after it.
    """
    return choose(op, backend, *arguments).run(*arguments, **more)


def _refusal(
    op: str, name: str, recording: str | None, request: Request, named: Mapping[str, Any]
) -> str | None:
    implementation = _implementations.get((op, name))
    if implementation is None:
        return f"{op} has no {name} implementation"
    if recording is not None and name != "torch":
        return f"{recording}, and recorders and transforms cannot see what a {name} kernel computes"
    if recording is not None and op in _fixed_by_values and tracing.bakes_values_in():
        return f"{recording}, and {_fixed_by_values[op]}"
    reason = implementation.absent() or implementation.refuses(request)
    if reason is not None or name == "torch":
        return reason
    definition = _implementations.get((op, "torch"))
    return gate.refusal(
        implementation, None if definition is None else definition.run, request.arguments, named
    )


def record_as(
    op: str,
    call: Callable[..., Any] | None,
    takes: Callable[..., bool] | None = None,
    fixed_by_values: str | None = None,
) -> None:
    """Set how an op is recorded.

    call: runs the custom op `sam2_fast::<op>` on the arguments of the op; None: no custom op.
    takes: for which arguments torch.compile gets the custom op instead of the definition; None: if
        the first one is on a CPU.
    fixed_by_values: as part of a sentence, why a recording of the definition would be valid for the
        recorded values only. Such an op is always recorded as the custom op. An ONNX file cannot
        contain custom ops, so its export raises BackendError.
    """
    if call is not None:
        _nodes[op] = Node(call, takes or _first_is_on_cpu)
    if fixed_by_values is not None:
        _fixed_by_values[op] = fixed_by_values


def _first_is_on_cpu(first: Tensor, *_: Any) -> bool:
    return first.device.type == "cpu"


class Selected(NamedTuple):
    """The implementation of a call and its arguments: `run(*arguments)`."""

    run: Callable[..., Any]
    arguments: tuple[Any, ...]


def execute(op: str, backend: str, *arguments: Any) -> Any:
    """Run an op on `arguments` with the implementation that `select` returns."""
    run, inputs = select(op, backend, *arguments)
    return run(*inputs)


def select(op: str, backend: str, *arguments: Any, **named: Any) -> Selected:
    """The implementation that runs a call of an op, and its arguments.

    It is the one that `choose` returns, except for "auto" while operations are recorded or
    transformed, or if tensors are of a subclass: then it is the definition or the custom op, one
    opaque node (`record_as`). Lazily negated tensors are materialized first.
    named: options that all implementations have and that do not affect the choice; the caller
        passes them to `run` by name.
    Raises BackendError if the named backend cannot run, and if a recording would be valid for the
    recorded values only.
    """
    recording = tracing.recording_reason()
    ordinary = False
    request = Request(arguments)
    if recording is None:
        ordinary = request.all_plain()
        if not ordinary:
            arguments = materialized(arguments)
            request = Request(arguments)
            ordinary = request.all_plain()
    if tracing.may_leave_graph() and (
        backend not in ("auto", "torch") or (op in _fixed_by_values and op not in _nodes)
    ):
        return Selected(partial(_run_between_graphs, op, backend), arguments)
    if ordinary or backend != "auto":
        return Selected(_choose(op, backend, recording, request, named).run, arguments)
    return Selected(_recorded(op, recording, request), arguments)


def _recorded(op: str, recording: str | None, request: Request) -> Callable[..., Any]:
    """The definition or the custom op, for recorded operations and tensors of a subclass."""
    node = _nodes.get(op)
    exporting = recording is not None and tracing.is_onnx_export()
    if op in _fixed_by_values:
        if exporting or (node is None and tracing.bakes_values_in()):
            advice = f"Record only the steps before it, and call {op} on the result"
            raise BackendError(f"{op}: {recording}, and {_fixed_by_values[op]}. {advice}")
        return _choose(op, "auto", recording, request, {}).run if node is None else node.call
    if node is not None and not exporting and node.takes(*request.arguments):
        opaque = torch.compiler.is_compiling() or not request.all_plain()
        if opaque and not request.is_differentiated():
            return node.call
    return _implementations[op, "torch"].run


def preferred(op: str) -> Implementation | None:
    """The implementation that "auto" runs for arguments that all support: the first present one."""
    candidates = (_implementations.get((op, name)) for name in ORDER)
    return next((c for c in candidates if c is not None and c.absent() is None), None)


def registered() -> list[object]:
    """The state that `choose` depends on. If two such lists are equal, so are the choices."""
    return [*_implementations.values(), gate.current().state()]


def all_implementations() -> dict[tuple[str, str], Implementation]:
    """All registered implementations, by op and backend. A copy."""
    return dict(_implementations)


@contextmanager
def replaced_by(implementations: Mapping[tuple[str, str], Implementation]) -> Iterator[None]:
    """Inside the context, only these are registered in the whole process, and none is absent."""
    before = dict(_implementations)
    _replace({key: replace(i, absent=always) for key, i in implementations.items()})
    try:
        yield
    finally:
        _replace(before)


def _replace(implementations: Mapping[tuple[str, str], Implementation]) -> None:
    _implementations.clear()
    _implementations.update(implementations)


def absence(op: str, backend: str) -> str | None:
    """Why an implementation cannot run on this machine at all, or None.

    Raises KeyError if it is not registered.
    """
    return _implementations[op, backend].absent()


def backends() -> list[Status]:
    """Every op and backend, with the reason why it cannot run on this machine and build."""
    return [Status(op, backend, absence(op, backend)) for op, backend in _sorted()]


def _sorted() -> Iterator[tuple[str, str]]:
    return iter(sorted(_implementations, key=lambda key: (key[0], ORDER.index(key[1]))))
