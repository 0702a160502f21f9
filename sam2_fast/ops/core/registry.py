"""Which implementations of an op exist, and why one cannot run: explicit, with reasons, never a
silent fall-back."""

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
"""The order in which `auto` asks. `torch` is the reference and refuses nothing."""


class BackendError(RuntimeError):
    """A backend that was asked for by name cannot run; the message says why and what would."""


def always() -> None:
    """The `absent` of what every machine has."""


@dataclass(frozen=True)
class Implementation:
    """One op on one backend."""

    op: str
    backend: str
    run: Callable[..., Any]
    refuses: Callable[[Request], str | None]
    """The reason why it cannot run on the arguments of a call, or None."""
    absent: Callable[[], str | None] = always
    """Why the machine lacks it altogether, or None."""
    kernels: tuple[str, ...] = ()
    """Names of the Triton kernels that it launches, without `_kernel`."""


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
    """An op as one node of a graph. `call` passes its arguments to the custom op, where `takes`
    says that this is worth it."""

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
    """The implementation that runs: the named one or a `BackendError` with its reason; for "auto"
    the first that does not refuse.

    While operations are recorded, transformed or watched (`tracing.recording_reason`), every
    backend but "torch" refuses. On a GPU a kernel refuses that has not proved itself there; one
    that nothing is known of is proved now, on these arguments (`proving.gate`).
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
    wanted = "torch" if backend == "auto" else backend
    willing = next(
        (name for name in ORDER if _refusal(op, name, recording, request, named) is None), "none"
    )
    raise BackendError(
        f"{op}: {backend} refuses: {_refusal(op, wanted, recording, request, named)}. Would run: "
        f"{willing}"
    )


@torch._disable_dynamo
def _run_between_graphs(op: str, backend: str, *arguments: Any, **more: Any) -> Any:
    """What `choose` finds, run by Python: torch.compile ends a graph before the call and begins
    another after it."""
    return choose(op, backend, *arguments).run(*arguments, **more)


def _refusal(
    op: str, name: str, recording: str | None, request: Request, named: Mapping[str, Any]
) -> str | None:
    implementation = _implementations.get((op, name))
    if implementation is None:
        return f"{op} has no {name} implementation"
    if recording is not None and name != "torch":
        return (
            f"{recording}, and what a {name} kernel computes is seen by no recorder and no "
            "transform"
        )
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
    """Say how an op is recorded. call: hands its arguments to the custom op `sam2_fast::<op>`;
    None: there is none.

    takes: for which arguments torch.compile gets the custom op instead of the definition (None:
    where the first is on a CPU).
    fixed_by_values: as part of a sentence, why a recording of the definition would hold for the
    recorded numbers only. Such an op is always recorded as the custom op; an ONNX file, which
    cannot hold that, is refused.
    """
    if call is not None:
        _nodes[op] = Node(call, takes or _first_is_on_cpu)
    if fixed_by_values is not None:
        _fixed_by_values[op] = fixed_by_values


def _first_is_on_cpu(first: Tensor, *_: Any) -> bool:
    return first.device.type == "cpu"


class Selected(NamedTuple):
    """What a public op runs, as `run(*arguments)`."""

    run: Callable[..., Any]
    arguments: tuple[Any, ...]


def execute(op: str, backend: str, *arguments: Any) -> Any:
    """Run an op on `arguments`, as `select` decides."""
    run, given = select(op, backend, *arguments)
    return run(*given)


def select(op: str, backend: str, *arguments: Any, **named: Any) -> Selected:
    """What runs an op, decided here for all of them.

    named: options that every implementation takes and that no backend is chosen by; the caller
    passes them to `run` by name.

    An implementation as `choose` finds it; while operations are recorded or transformed, or where
    tensors are of a subclass, "auto" is the reference or the op as one opaque node (`record_as`).
    Lazily negated tensors are resolved first. Raises BackendError where the named backend cannot
    run, and where a recording would be right for the recorded numbers only.
    """
    recording, ordinary = tracing.recording_reason(), False
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
    """The reference or the custom op, while operations are recorded or where tensors are of a
    subclass."""
    node = _nodes.get(op)
    exporting = recording is not None and tracing.is_onnx_export()
    if op in _fixed_by_values:
        if exporting or (node is None and tracing.bakes_values_in()):
            way_out = f"Record what comes before it, and call {op} on the result"
            raise BackendError(f"{op}: {recording}, and {_fixed_by_values[op]}. {way_out}")
        return _choose(op, "auto", recording, request, {}).run if node is None else node.call
    if node is not None and not exporting and node.takes(*request.arguments):
        opaque = torch.compiler.is_compiling() or not request.all_plain()
        if opaque and not request.want_gradients():
            return node.call
    return _implementations[op, "torch"].run


def preferred(op: str) -> Implementation | None:
    """What "auto" runs for arguments that every implementation takes: the first that is not
    absent."""
    known = (_implementations.get((op, name)) for name in ORDER)
    return next((one for one in known if one is not None and one.absent() is None), None)


def registered() -> list[object]:
    """All that `choose` goes by. Where two such lists are equal, it chose from the same
    implementations."""
    return [*_implementations.values(), gate.current().state()]


def all_implementations() -> dict[tuple[str, str], Implementation]:
    """What is registered, by op and backend. A copy."""
    return dict(_implementations)


@contextmanager
def instead(implementations: Mapping[tuple[str, str], Implementation]) -> Iterator[None]:
    """Only these are registered inside, in the whole process, and none is absent."""
    known = dict(_implementations)
    _replace({key: replace(one, absent=always) for key, one in implementations.items()})
    try:
        yield
    finally:
        _replace(known)


def _replace(implementations: Mapping[tuple[str, str], Implementation]) -> None:
    _implementations.clear()
    _implementations.update(implementations)


def absence(op: str, backend: str) -> str | None:
    """Why the machine lacks an implementation altogether, or None. Raises KeyError for one that is
    not registered."""
    return _implementations[op, backend].absent()


def backends() -> list[Status]:
    """Every op x backend with the reason why it is not there, for this machine and this build."""
    return [Status(op, backend, absence(op, backend)) for op, backend in _sorted()]


def _sorted() -> Iterator[tuple[str, str]]:
    return iter(sorted(_implementations, key=lambda key: (key[0], ORDER.index(key[1]))))
