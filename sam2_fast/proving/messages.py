"""What is said of a kernel: verdicts, choices and the warning, from what a proof found."""

from __future__ import annotations

import time
from typing import Any, Protocol

from sam2_fast.proving.card import Card
from sam2_fast.proving.prover import Finding
from sam2_fast.proving.store import Choice, Verdict

REPORT = "sam2-fast doctor --json"
UNSETTLED = "it has not been proved on this card yet"


class Kernel(Protocol):
    """An implementation in the registry, as far as proofs need it."""

    @property
    def op(self) -> str:
        """Its op."""

    @property
    def backend(self) -> str:
        """Its backend."""

    @property
    def run(self) -> Any:
        """Computes it."""


def verdict_of(kernel: Kernel, configuration: str, finding: Finding) -> Verdict:
    """What a finding says of a kernel."""
    reason, error = finding.outcome
    forms = tuple((*point, form) for point, form in finding.forms.items())
    taken = () if reason else forms
    ms = finding.milliseconds
    return Verdict(kernel.op, kernel.backend, configuration, reason, error, ms, today(), taken)


def choices_of(finding: Finding, op: str) -> list[Choice]:
    """The forms that a finding settles."""
    return [
        Choice(*p, t.form, "measured", t.milliseconds, t.default_milliseconds, op, today())
        for p, t in finding.taken.items()
    ]


def warning_of(verdict: Verdict, card: Card) -> str:
    """What is told once of a kernel that is refused."""
    return (
        f"sam2_fast does not use the {verdict.backend} kernel of {verdict.op} on {card.name} "
        f"({card.architecture}, driver {card.driver or 'none'}, torch {card.torch}, triton "
        f"{card.triton}) for configuration {verdict.configuration}: {verdict.reason}. The next "
        f"backend, at last torch, runs in its place: results are right, but slower. Please "
        f"report this with the output of `{REPORT}`."
    )


def unwritable(error: OSError) -> str:
    """What is told once where the cache cannot be used."""
    return (
        f"sam2_fast cannot keep the proofs of its kernels on disk ({error}): every process proves "
        "them again. Set SAM2_FAST_CACHE to a directory that can be written."
    )


def today() -> str:
    """The date, UTC."""
    return time.strftime("%Y-%m-%d", time.gmtime())
