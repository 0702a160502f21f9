"""Prove one kernel on one call, then choose the fastest of its proven forms."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from sam2_fast.kernels import choices
from sam2_fast.kernels.choices import Form, Trial
from sam2_fast.proving.case import Case, failures
from sam2_fast.proving.device import compile_ahead
from sam2_fast.proving.errors import Outcome
from sam2_fast.proving.rules import Call, Rule
from sam2_fast.proving.store import Point

MARGIN = 0.03
"""A form must be faster by this share than the one it replaces, so that noise does not choose."""
SWEEPS = 2
RESCUE_SECONDS = 30.0
"""How long other forms are looked for where a kernel fails as it is."""
Met = Mapping[Point, tuple[Form, tuple[Form, ...]]]
"""Of each choice point the form that was taken and all there are, the default first."""


@dataclass(frozen=True)
class Tried:
    """One form of one choice point and what came of it."""

    point: Point
    form: Form
    default: Form
    milliseconds: float | None = None
    default_milliseconds: float | None = None
    reason: str | None = None
    """Why the form must not be taken; None: it is right."""
    taken: bool = False
    """Whether it is the fastest of its point."""


@dataclass
class Finding:
    """What a proof found."""

    outcome: Outcome
    call: Call
    """What was run."""
    milliseconds: float | None = None
    forms: dict[Point, Form] = field(default_factory=dict)
    """The form of every choice point with which it is right."""
    tried: list[Tried] = field(default_factory=list)
    complete: bool = True
    """Whether the time was enough to try all forms."""

    @property
    def taken(self) -> dict[Point, Tried]:
        """The form to take at each point that was settled."""
        return {t.point: t for t in self.tried if t.taken}


def prove(
    kernel: Callable[..., Any],
    reference: Callable[..., Any],
    rule: Rule,
    call: Call,
    *,
    settled: Collection[Point] = (),
    seconds: float = 0.0,
) -> Finding:
    """Prove `kernel` on a sample of `call`, then choose among its forms; as `examine`."""
    case = Case(reference, rule, rule.sample(call))
    finding = examine(case, kernel, settled=settled, seconds=seconds)
    del case  # its results take memory
    for other in rule.more(call):
        examine_more(finding, Case(reference, rule, other), kernel)
    return finding


def examine_more(finding: Finding, case: Case, kernel: Callable[..., Any]) -> None:
    """Whether a kernel that was found right is so on a further call, with the forms found for the
    first one; else the finding is that it is wrong."""
    if finding.outcome.reason is not None:
        return
    forced = {point: tried.form for point, tried in finding.taken.items()}
    with choices.trying(forced) as trial:
        outcome = case.check(kernel)
    finding.forms |= {point: form for point, (form, _) in trial.choices.items()}
    errors = [e for e in (finding.outcome.error, outcome.error) if e is not None]
    finding.outcome = Outcome(outcome.reason, max(errors, default=None))
    if outcome.reason is not None:
        finding.tried = [replace(t, taken=False) for t in finding.tried]


def examine(
    case: Case,
    kernel: Callable[..., Any],
    *,
    settled: Collection[Point] = (),
    seconds: float = 0.0,
    timed: bool = True,
) -> Finding:
    """Whether `kernel` is right; where it is, its time and the fastest of its forms.

    settled: choice points that are measured already and are not tried again. seconds: how long
    other forms may be tried. Raises NothingKnownError, LostDeviceError, torch.OutOfMemoryError.
    """
    outcome, forms, met = first_right(case, kernel)
    finding = Finding(outcome, case.call)
    finding.forms = {point: form for point, (form, _) in met.items()}
    finding.tried = [
        Tried(point, form, met[point][1][0], taken=True) for point, form in forms.items()
    ]
    if outcome.reason is None and timed:
        with choices.trying(forms):
            finding.milliseconds = case.time(kernel)
        Tuner(case, kernel, finding, forms, settled, seconds).run()
    return finding


def first_right(case: Case, kernel: Callable[..., Any]) -> tuple[Outcome, dict[Point, Form], Met]:
    """The kernel as it would run now; where that is wrong, the first other forms that are right.
    Returns how it is, the forms to force, and the choice points that were met.

    A shipped choice or a default may fit another card only, for example where it wants more shared
    memory than there is.
    """
    with choices.trying() as trial:
        first = case.check(kernel)
    if first.reason is None:
        return first, {}, trial.choices
    until = time.monotonic() + RESCUE_SECONDS
    for forms in _others(trial):
        if time.monotonic() > until:
            break
        with choices.trying(forms) as other:
            found = case.check(kernel)
        if found.reason is None:
            return found, forms, other.choices
    return first, {}, trial.choices


def _others(trial: Trial) -> Iterator[dict[Point, Form]]:
    defaults = {
        point: forms[0] for point, (form, forms) in trial.choices.items() if form != forms[0]
    }
    if defaults:
        yield defaults
    for point, (taken, forms) in trial.choices.items():
        for form in forms:
            if form != taken and {point: form} != defaults:
                yield {point: form}


class Tuner:
    """Coordinate descent over the choice points that a kernel meets, one point at a time."""

    def __init__(
        self,
        case: Case,
        kernel: Callable[..., Any],
        finding: Finding,
        forms: dict[Point, Form],
        settled: Collection[Point],
        seconds: float,
    ) -> None:
        self._case, self._kernel, self._finding = case, kernel, finding
        self._forms, self._settled = dict(forms), settled
        self._until = time.monotonic() + seconds

    def run(self) -> None:
        """Try forms until none is faster or the time is over; what was found is in the finding."""
        for _ in range(SWEEPS):
            if not self._sweep():
                break
        self._finding.forms |= self._forms

    def _sweep(self) -> bool:
        """Each point once. Whether anything changed."""
        changed, done = False, set(self._settled)
        while True:
            with choices.trying(self._forms) as trial:
                self._case.run(self._kernel)
            self._finding.forms = {point: form for point, (form, _) in trial.choices.items()}
            left = [
                p for p, (_, forms) in trial.choices.items() if p not in done and len(forms) > 1
            ]
            if not left:
                return changed
            if time.monotonic() >= self._until:
                self._finding.complete = False
                return False
            point = left[0]
            done.add(point)
            taken, forms = trial.choices[point]
            changed |= self._settle(point, taken, forms)

    def _settle(self, point: Point, taken: Form, forms: tuple[Form, ...]) -> bool:
        """Find the fastest form of one point."""
        self._compile(point, forms)
        best, best_ms = taken, self._timed(point, taken)
        tried = [Tried(point, taken, forms[0], best_ms)]
        for form in forms:
            if form == taken:
                continue
            if time.monotonic() >= self._until:
                self._finding.complete = False
                break
            with choices.trying({**self._forms, point: form}):
                outcome = self._case.check(self._kernel)
            if outcome.reason is not None:
                tried.append(Tried(point, form, forms[0], reason=outcome.reason))
                continue
            found = self._timed(point, form)
            tried.append(Tried(point, form, forms[0], found))
            if found < best_ms * (1 - MARGIN) and self._again(point, form, best):
                best, best_ms = form, found
        self._record(point, best, tried)
        self._forms[point] = best
        self._finding.milliseconds = best_ms
        return best != taken

    def _compile(self, point: Point, forms: tuple[Form, ...]) -> None:
        """All forms at once, on a GPU. One that fails says so when it is tried."""

        def run() -> None:
            for form in forms:
                with suppress(*failures()), choices.trying({**self._forms, point: form}):
                    self._case.run(self._kernel)

        compile_ahead(run)

    def _record(self, point: Point, best: Form, tried: list[Tried]) -> None:
        by_default = next((t.milliseconds for t in tried if t.form == t.default), None)
        others = [t for t in self._finding.tried if t.point != point]
        self._finding.tried = others + [
            replace(t, default_milliseconds=by_default, taken=t.form == best) for t in tried
        ]

    def _timed(self, point: Point, form: Form) -> float:
        with choices.trying({**self._forms, point: form}):
            return self._case.time(self._kernel)

    def _again(self, point: Point, form: Form, best: Form) -> bool:
        """Whether a form that looked faster is faster when both are timed again."""
        return self._timed(point, form) < self._timed(point, best) * (1 - MARGIN)
