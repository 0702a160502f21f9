"""Decides whether a kernel may run: by a verdict from the cache, or by a proof on the call."""

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
from sam2_fast.proving.case import CaseError, LostDeviceError
from sam2_fast.proving.device import capturing, compiles_only, exclusive
from sam2_fast.proving.files import cache_directory
from sam2_fast.proving.messages import (
    NOT_PROVED,
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
"""After so many proofs during which their process died, a kernel is refused."""
TUNING_SECONDS = 20.0
"""Time in which a process may try other forms of its kernels. The doctor has no such limit."""
SECONDS_PER_PROOF = 5.0
"""The same for a single proof."""

_log = logging.getLogger(__name__)


class Gate:
    """The verdicts about kernels in a process."""

    def __init__(
        self,
        gates: Callable[[str, torch.device], bool] = on_gpu,
        card: Callable[[torch.device], Card] = card_of,
        directory: Callable[[], Path] = cache_directory,
        tuning_seconds: float = TUNING_SECONDS,
    ) -> None:
        """Create a gate, without reading files.

        gates: whether kernels of a backend need proofs on a device.
        card: returns the card of a device.
        directory: returns that of the cache; may raise OSError.
        tuning_seconds: see `TUNING_SECONDS`.
        """
        self.cache = Cache(card, directory)
        self._gates = gates
        self._seconds = tuning_seconds
        self._verdicts: dict[Hashable, Verdict] = {}
        # choices measured in this process, which it uses even if no file can be written
        self._measured: dict[torch.device, dict[Point, Choice]] = {}
        self._warned: set[tuple[str, str]] = set()
        self._revoked = 0

    def refusal(
        self,
        kernel: Kernel,
        reference: Callable[..., Any] | None,
        arguments: tuple[Any, ...],
        named: Mapping[str, Any],
    ) -> str | None:
        """Why `kernel` must not run on these arguments, or None.

        Without a verdict for the configuration, the kernel is proved now, on the arguments. While
        kernels are compiled ahead of time, none is refused, since none runs.
        reference: the definition of the op, in torch. Raises LostDeviceError if the device fails
        after the kernel ran.
        """
        device = _device(arguments)
        if device is None or not self._gates(kernel.backend, device) or not enabled():
            return None
        if compiles_only():
            return None
        configuration = rule_of(kernel.op).configuration(*arguments, **named)
        key = _key(kernel.op, kernel.backend, device, configuration)
        verdict = self._verdicts.get(key)
        if verdict is not None:
            return verdict.reason
        if reference is None:
            return "it cannot be proved, as the op has no definition in torch"
        return self._decide(key, kernel, reference, Call(arguments, dict(named)), device)

    def refusal_of(
        self, op: str, backend: str, device: torch.device, configuration: Hashable
    ) -> str | None:
        """As `refusal`, but without a proof: a configuration without a verdict is refused."""
        if not self._gates(backend, device) or not enabled():
            return None
        key = _key(op, backend, device, configuration)
        verdict = self._verdicts.get(key) or self._read_verdict(key, device)
        return f"{op}: {NOT_PROVED}" if verdict is None else verdict.reason

    def state(self) -> tuple[Hashable, ...]:
        """The state of the gate that affects which kernels run.

        It changes when a CUDA graph that was captured before may have a kernel that is now refused.
        """
        return enabled(), self._revoked

    def table(self, device: torch.device) -> dict[Point, Form]:
        """The forms to use at choice points, if kernels on the device need proofs."""
        if not self._gates("triton", device):
            return {}
        measured = self._measured.get(device, {})
        return {**self.cache.table(device), **{p: c.form for p, c in measured.items()}}

    def key(self, kernel: Kernel, call: Call) -> Hashable:
        """The key of verdicts about `kernel` on `call`.

        Raises ValueError if no argument is a tensor.
        """
        device = _device(call.arguments)
        if device is None:
            raise ValueError(f"arguments: expected a tensor among those of {kernel.op}")
        configuration = rule_of(kernel.op).configuration(*call.arguments, **call.named)
        return _key(kernel.op, kernel.backend, device, configuration)

    def replace(
        self, device: torch.device, verdicts: Mapping[Hashable, Verdict], measured: list[Choice]
    ) -> None:
        """Use these verdicts and choices from now on, and save them to disk."""
        self._install(device, measured)
        for key, verdict in verdicts.items():
            self._set_verdict(key, verdict)
        self.cache.save(device, list(verdicts.values()), measured)

    def _decide(
        self,
        key: Hashable,
        kernel: Kernel,
        reference: Callable[..., Any],
        call: Call,
        device: torch.device,
    ) -> str | None:
        saved = self._read_verdict(key, device)
        if saved is not None:
            return saved.reason
        first = next(tensors_in(call.arguments))
        if capturing(first):
            return f"{NOT_PROVED}, and a CUDA graph is being captured"
        if first.numel() == 0:
            return f"{NOT_PROVED}, and the first tensor is empty"
        with exclusive():
            # another thread may have proved it meanwhile
            verdict = self._verdicts.get(key) or self._prove(key, kernel, reference, call, device)
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
        with self.cache.running_proof(kernel.op, kernel.backend, text, device) as proof:
            if proof.earlier >= ATTEMPTS:
                reason = f"{proof.earlier} processes died while it was proved"
                return self._save(key, _refused(kernel, text, reason), [], device)
            try:
                finding = self._run_proof(kernel, reference, call, device)
            except LostDeviceError:
                proof.lost = True
                raise
            except (CaseError, torch.OutOfMemoryError) as error:
                return self._unknown(key, kernel, error, device)
            verdict = verdict_of(kernel, text, finding)
            measured = choices_of(finding, kernel.op)
            earlier = self._measured_choices(device)
            if conflicts := [c.point for c in measured if earlier.get(c.at, c).form != c.form]:
                # a measured form is not changed here: two ops could replace each other's for ever
                reason = (
                    f"it is correct only with another form of {conflicts[0]} than other ops use"
                )
                verdict = _refused(kernel, text, reason)
                measured = []
            return self._save(key, verdict, measured, device)

    def _run_proof(
        self,
        kernel: Kernel,
        reference: Callable[..., Any],
        call: Call,
        device: torch.device,
    ) -> Finding:
        """Prove a kernel, and choose its forms within the remaining time for that."""
        start = time.monotonic()
        rule = rule_of(kernel.op)
        seconds = min(self._seconds, SECONDS_PER_PROOF)
        settled = self._measured_choices(device).keys()
        finding = prove(kernel.run, reference, rule, call, settled=settled, seconds=seconds)
        if finding.form_results:
            self._seconds = max(0.0, self._seconds - (time.monotonic() - start))
        return finding

    def _measured_choices(self, device: torch.device) -> dict[Point, Choice]:
        """Choices that were measured on the device."""
        return {**self.cache.contents(device).choices, **self._measured.get(device, {})}

    def _save(
        self, key: Hashable, verdict: Verdict, measured: list[Choice], device: torch.device
    ) -> Verdict:
        self.replace(device, {key: verdict}, measured)
        self._warn(verdict, device)
        _log.info("%s on %s: %s", verdict.name, device, verdict.reason or "proved")
        return verdict

    def _unknown(
        self, key: Hashable, kernel: Kernel, error: Exception, device: torch.device
    ) -> Verdict:
        """Refuse the kernel in this process only: another time there may be enough memory."""
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        reason = f"it could not be proved: {first_line}"
        verdict = Verdict(kernel.op, kernel.backend, text_of(key), reason)
        self._set_verdict(key, verdict)
        self._warn(verdict, device)
        return verdict

    def _read_verdict(self, key: Hashable, device: torch.device) -> Verdict | None:
        op, backend = key[:2]  # type: ignore[index]
        verdict = self.cache.contents(device).verdicts.get(f"{op} {backend} {text_of(key)}")
        if verdict is not None and not verdict.holds_with(self.table(device)):
            return None  # another op has chosen another form in the meantime
        if verdict is not None:
            self._set_verdict(key, verdict)
            self._warn(verdict, device)
        return verdict

    def _set_verdict(self, key: Hashable, verdict: Verdict) -> None:
        before = self._verdicts.get(key)
        if before is not None and before.reason is None and verdict.reason is not None:
            self._revoked += 1
        self._verdicts[key] = verdict

    def _install(self, device: torch.device, measured: list[Choice]) -> None:
        if measured:
            # a new dictionary, as another thread may iterate over the old one
            earlier = self._measured.get(device, {})
            self._measured[device] = {**earlier, **{c.at: c for c in measured}}
            table = self.table(device)
            choices.install(device, table)
            for key, verdict in list(self._verdicts.items()):
                if key[2] == device and not verdict.holds_with(table):  # type: ignore[index]
                    self._verdicts.pop(key, None)  # proved again later, with the current forms

    def _warn(self, verdict: Verdict, device: torch.device) -> None:
        kernel = verdict.op, verdict.backend
        if verdict.reason is not None and kernel not in self._warned:
            self._warned.add(kernel)
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
    """The configuration and autocast dtype in a key of `Gate.key`, as text."""
    _, _, _, cast, configuration = key
    return described(configuration) + (f" autocast {described(cast)}" if cast else "")


_current: ContextVar[Gate | None] = ContextVar("sam2_fast_gate", default=None)
_process = Gate()


def current() -> Gate:
    """The gate of this thread: that of the process, unless `using` has replaced it."""
    return _current.get() or _process


@contextmanager
def using(gate: Gate) -> Iterator[Gate]:
    """Replace the gate of this thread inside the context, and the tables of choices globally."""
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
    """`Gate.refusal` of the current gate. Inside `only_torch`, every kernel is refused."""
    if is_active():
        return "a reference is being computed, without kernels"
    return current().refusal(kernel, reference, arguments, named)


choices.load_with(lambda device: current().table(device))
