"""Whether the registry of ops may take a kernel: known from the cache, or proved on the call."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sam2_fast.kernels import choices
from sam2_fast.kernels.choices import Form
from sam2_fast.proving.cache import Cache
from sam2_fast.proving.card import Card, card_of
from sam2_fast.proving.case import LostDeviceError, NothingKnownError
from sam2_fast.proving.device import capturing, compiles_only, exclusive
from sam2_fast.proving.files import cache_directory
from sam2_fast.proving.messages import (
    UNSETTLED,
    Kernel,
    choices_of,
    today,
    verdict_of,
    warning_of,
)
from sam2_fast.proving.only_torch import is_active
from sam2_fast.proving.prover import Finding, prove
from sam2_fast.proving.rules import Call, described, rule_of, tensors_in
from sam2_fast.proving.store import Choice, Point, Verdict
from sam2_fast.proving.switch import enabled, on_gpu

ATTEMPTS = 2
"""Proofs that may end with the death of their process before a kernel is refused."""
TUNING_SECONDS, AT_ONCE = 20.0, 5.0
"""How long a process may try other forms of its kernels in all, and of one when it first runs. The
doctor has no such limits."""

_log = logging.getLogger(__name__)


class Gate:
    """The verdicts of a process."""

    def __init__(
        self,
        gates: Callable[[str, torch.device], bool] = on_gpu,
        card: Callable[[torch.device], Card] = card_of,
        directory: Callable[[], Path] = cache_directory,
        tuning_seconds: float = TUNING_SECONDS,
    ) -> None:
        """gates: of a backend and a device, whether proofs are needed; card: what is behind a
        device; directory: of the cache, may raise OSError; tuning_seconds: as `TUNING_SECONDS`.
        Reads no file yet."""
        self.cache = Cache(card, directory)
        self._gates, self._seconds = gates, tuning_seconds
        self._known: dict[Hashable, Verdict] = {}
        self._measured: dict[torch.device, dict[Point, Choice]] = {}  # also where no file can be
        self._warned: set[tuple[str, str]] = set()
        self._revoked = 0

    def refusal(
        self,
        kernel: Kernel,
        reference: Callable[..., Any] | None,
        arguments: tuple[Any, ...],
        named: Mapping[str, Any],
    ) -> str | None:
        """Why `kernel` must not run on these arguments; None where it may.

        An unknown configuration is proved here and now, on the arguments. What the call itself
        returns is not touched. While kernels are compiled ahead, which computes nothing, none is
        refused. reference: the definition of the op, in torch. Raises LostDeviceError where the
        device takes no work any more after the kernel ran.
        """
        device = _device(arguments)
        if device is None or not self._gates(kernel.backend, device) or not enabled():
            return None
        if compiles_only():
            return None
        configuration = rule_of(kernel.op).configuration(*arguments, **named)
        key = _key(kernel.op, kernel.backend, device, configuration)
        verdict = self._known.get(key)
        if verdict is not None:
            return verdict.reason
        if reference is None:
            return "it has no definition in torch to be proved against"
        return self._settle(key, kernel, reference, Call(arguments, dict(named)), device)

    def refusal_of(
        self, op: str, backend: str, device: torch.device, configuration: Hashable
    ) -> str | None:
        """As `refusal`, of a configuration, without proving anything: an unknown one is refused."""
        if not self._gates(backend, device) or not enabled():
            return None
        key = _key(op, backend, device, configuration)
        verdict = self._known.get(key) or self._on_disk(key, device)
        return f"{op}: {UNSETTLED}" if verdict is None else verdict.reason

    def state(self) -> tuple[Hashable, ...]:
        """What decides besides the registry which kernels run. It is another one where a recording
        made earlier may hold a kernel that must not run now."""
        return enabled(), self._revoked

    def table(self, device: torch.device) -> dict[Point, Form]:
        """The forms to take at choice points, where a device is one whose kernels are proved."""
        if not self._gates("triton", device):
            return {}
        measured = self._measured.get(device, {})
        return {**self.cache.table(device), **{p: c.form for p, c in measured.items()}}

    def key(self, kernel: Kernel, call: Call) -> Hashable:
        """Under which a verdict about `kernel` on `call` is known. Raises ValueError where no
        argument is a tensor."""
        device = _device(call.arguments)
        if device is None:
            raise ValueError(f"arguments: expected a tensor among those of {kernel.op}")
        configuration = rule_of(kernel.op).configuration(*call.arguments, **call.named)
        return _key(kernel.op, kernel.backend, device, configuration)

    def replace(
        self, device: torch.device, verdicts: Mapping[Hashable, Verdict], found: list[Choice]
    ) -> None:
        """Take these verdicts and choices from now on, and keep them on disk."""
        self._install(device, found)
        for key, verdict in verdicts.items():
            self._learn(key, verdict)
        self.cache.save(device, list(verdicts.values()), found)

    def _settle(
        self,
        key: Hashable,
        kernel: Kernel,
        reference: Callable[..., Any],
        call: Call,
        device: torch.device,
    ) -> str | None:
        known = self._on_disk(key, device)
        if known is not None:
            return known.reason
        first = next(tensors_in(call.arguments))
        if capturing(first):
            return f"{UNSETTLED}, and a CUDA graph is being captured"
        if first.numel() == 0:
            return f"{UNSETTLED}, and there is nothing to compute"
        with exclusive():
            # another thread may have been faster
            verdict = self._known.get(key) or self._prove(key, kernel, reference, call, device)
        return verdict.reason

    def _prove(
        self,
        key: Hashable,
        kernel: Kernel,
        reference: Callable[..., Any],
        call: Call,
        device: torch.device,
    ) -> Verdict:
        text = text_of(key)
        with self.cache.under_way(kernel.op, kernel.backend, text, device) as proof:
            if proof.earlier >= ATTEMPTS:
                reason = f"{proof.earlier} processes died while it was proved"
                return self._keep(key, _refused(kernel, text, reason), [], device)
            try:
                finding = self._find(kernel, reference, call, device)
            except LostDeviceError:
                proof.lost = True
                raise
            except (NothingKnownError, torch.OutOfMemoryError) as error:
                return self._unknown(key, kernel, error, device)
            verdict, found = verdict_of(kernel, text, finding), choices_of(finding, kernel.op)
            known = self._settled(device)
            if other := [c.point for c in found if known.get(c.at, c).form != c.form]:
                # no measured form is changed here: two ops could undo each other's for ever
                reason = f"it is right only with another form of {other[0]} than other ops take"
                verdict, found = _refused(kernel, text, reason), []
            return self._keep(key, verdict, found, device)

    def _find(
        self,
        kernel: Kernel,
        reference: Callable[..., Any],
        call: Call,
        device: torch.device,
    ) -> Finding:
        """The proof, and forms within the time that is left for them."""
        start, rule = time.monotonic(), rule_of(kernel.op)
        seconds = min(self._seconds, AT_ONCE)
        settled = self._settled(device).keys()
        finding = prove(kernel.run, reference, rule, call, settled=settled, seconds=seconds)
        if finding.tried:
            self._seconds = max(0.0, self._seconds - (time.monotonic() - start))
        return finding

    def _settled(self, device: torch.device) -> dict[Point, Choice]:
        """Choices that were measured on the device."""
        return {**self.cache.contents(device).choices, **self._measured.get(device, {})}

    def _keep(
        self, key: Hashable, verdict: Verdict, found: list[Choice], device: torch.device
    ) -> Verdict:
        self.replace(device, {key: verdict}, found)
        self._warn(verdict, device)
        _log.info("%s on %s: %s", verdict.name, device, verdict.reason or "proved")
        return verdict

    def _unknown(
        self, key: Hashable, kernel: Kernel, error: Exception, device: torch.device
    ) -> Verdict:
        """Do without the kernel in this process. Nothing is kept: next time there may be room."""
        reason = f"it could not be proved: {str(error).splitlines()[0]}"
        verdict = Verdict(kernel.op, kernel.backend, text_of(key), reason)
        self._learn(key, verdict)
        self._warn(verdict, device)
        return verdict

    def _on_disk(self, key: Hashable, device: torch.device) -> Verdict | None:
        op, backend = key[:2]  # type: ignore[index]
        verdict = self.cache.contents(device).verdicts.get(f"{op} {backend} {text_of(key)}")
        if verdict is not None and not verdict.holds_with(self.table(device)):
            return None  # another op has chosen another form since
        if verdict is not None:
            self._learn(key, verdict)
            self._warn(verdict, device)
        return verdict

    def _learn(self, key: Hashable, verdict: Verdict) -> None:
        before = self._known.get(key)
        if before is not None and before.reason is None and verdict.reason is not None:
            self._revoked += 1
        self._known[key] = verdict

    def _install(self, device: torch.device, found: list[Choice]) -> None:
        if found:
            self._measured.setdefault(device, {}).update({c.at: c for c in found})
            table = self.table(device)
            choices.install(device, table)
            for key, verdict in list(self._known.items()):
                if key[2] == device and not verdict.holds_with(table):  # type: ignore[index]
                    del self._known[key]  # it is proved again with the forms that are taken now

    def _warn(self, verdict: Verdict, device: torch.device) -> None:
        which = verdict.op, verdict.backend
        if verdict.reason is not None and which not in self._warned:
            self._warned.add(which)
            text = warning_of(verdict, self.cache.card(device))
            warnings.warn(text, RuntimeWarning, stacklevel=2)


def _device(arguments: tuple[Any, ...]) -> torch.device | None:
    first = arguments[0] if arguments else None
    if isinstance(first, Tensor):
        return first.device
    return next((x.device for x in tensors_in(arguments)), None)


def _key(op: str, backend: str, device: torch.device, configuration: Hashable) -> Hashable:
    kind = device.type
    cast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    return op, backend, device, cast, configuration


def _refused(kernel: Kernel, text: str, reason: str) -> Verdict:
    return Verdict(kernel.op, kernel.backend, text, reason, date=today())


def text_of(key: Any) -> str:
    """The configuration and autocast in a key of `Gate.key`, for people and for files."""
    _, _, _, cast, configuration = key
    return described(configuration) + (f" autocast {described(cast)}" if cast else "")


_current: ContextVar[Gate | None] = ContextVar("sam2_fast_gate", default=None)
_process = Gate()


def current() -> Gate:
    """The gate of this thread: that of the process, unless `using` replaces it."""
    return _current.get() or _process


@contextmanager
def using(gate: Gate) -> Iterator[Gate]:
    """Another gate for this thread inside, and its tables of choices for the process."""
    token = _current.set(gate)
    try:
        with choices.separate_tables(gate.table):
            yield gate
    finally:
        _current.reset(token)


def refusal(
    kernel: Kernel,
    reference: Callable[..., Any] | None,
    arguments: tuple[Any, ...],
    named: Mapping[str, Any],
) -> str | None:
    """`Gate.refusal` of the current gate; inside `only_torch` no kernel runs."""
    if is_active():
        return "definitions are being computed"
    return current().refusal(kernel, reference, arguments, named)


choices.load_with(lambda device: current().table(device))
