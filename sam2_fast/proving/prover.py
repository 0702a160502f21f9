"""Prove one kernel on one call, then choose the fastest of its proven forms."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from sam2_fast.kernels import choices
from sam2_fast.kernels.choices import Form, Trial
from sam2_fast.ops.recording import reason_of
from sam2_fast.proving.errors import Outcome, cast, judge
from sam2_fast.proving.only_torch import only_torch
from sam2_fast.proving.rules import Call, Rule
from sam2_fast.proving.store import Point
from sam2_fast.proving.timing import milliseconds

MARGIN = 0.03
"""A form must be faster by this share than the one it replaces, so that noise does not choose."""
SWEEPS = 2
RESCUE_SECONDS = 30.0
"""How long other forms are looked for where a kernel fails as it is."""
Met = Mapping[Point, tuple[Form, tuple[Form, ...]]]
"""Of each choice point the form that was taken and all there are, the default first."""


class NothingKnownError(RuntimeError):
    """The reference could not be computed, so nothing was proved; the message says why."""


class LostDeviceError(RuntimeError):
    """The device takes no work any more after a kernel ran: the process cannot go on with it."""


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


def failures() -> tuple[type[Exception], ...]:
    """What the compiler, the driver or the code of a kernel raises where the kernel is at fault."""
    triton = sys.modules.get("triton.errors")
    more = () if triton is None else (triton.TritonError,)
    plain = (RuntimeError, AssertionError, TypeError, ValueError, LookupError, AttributeError)
    return (*plain, ArithmeticError, OSError, ImportError, subprocess.SubprocessError, *more)


class Case:
    """One call with torch's result and an exact one, against which kernels are judged."""

    def __init__(self, reference: Callable[..., Any], rule: Rule, call: Call) -> None:
        """reference: the definition of the op, in torch. Computes both results.

        Raises NothingKnownError where the reference cannot run, such as for want of memory.
        """
        self.call, self._rule = call, rule
        self.device = next(x.device for x in tree_leaves(call) if isinstance(x, Tensor))
        self._reference = reference
        synchronize(self.device)  # what went wrong before is not the kernel's fault
        try:
            with torch.no_grad(), only_torch():
                self._torchs = reference(*call.arguments, **call.named)
                self._exact = self._computed_exactly()
            synchronize(self.device)
        except failures() as error:
            raise NothingKnownError(f"the reference failed: {reason_of(error)}") from error

    def _computed_exactly(self) -> Any:
        results = [x for x in tree_leaves(self._torchs) if isinstance(x, Tensor)]
        if not any(x.is_floating_point() for x in results):
            return self._torchs
        with torch.autocast(self.device.type, enabled=False):
            if self._rule.exact is not None:
                return self._rule.exact(*self.call.arguments, **self.call.named)
            wide = wider(self.call, self.device, self._rule.convolutions)
            given = cast(tuple(self.call), wide)
            return self._reference(*given[0], **given[1])

    def run(self, kernel: Callable[..., Any]) -> Any:
        """`kernel` on the arguments of the call."""
        with torch.no_grad():
            return kernel(*self.call.arguments, **self.call.named)

    def check(self, kernel: Callable[..., Any]) -> Outcome:
        """Whether `kernel` is right. Raises LostDeviceError where the device is gone after it, and
        torch.OutOfMemoryError where there is no room for its result."""
        try:
            result = self.run(kernel)
            synchronize(self.device)
            align = self._rule.align
            return judge(
                result,
                self._torchs,
                self._exact,
                None if align is None else lambda results: align(self.call, results),
            )
        except torch.OutOfMemoryError:
            raise
        except failures() as error:
            if not alive(self.device):
                raise LostDeviceError(reason_of(error)) from error
            return Outcome(f"raised {reason_of(error)}"[:500], None)

    def time(self, kernel: Callable[..., Any]) -> float:
        """Milliseconds of `kernel` on the call."""
        return milliseconds(lambda: self.run(kernel), self.device)

    def time_torch(self) -> float:
        """Milliseconds of the definition."""
        with only_torch():
            return self.time(self._reference)


def wider(call: Call, device: torch.device, convolutions: bool = False) -> torch.dtype:
    """float32 where the op computes in a narrower dtype (that of its first input, or the caller's
    autocast) and products of float32 are not rounded to TF32, else float64. The switches for TF32
    are the caller's: they are read, never set."""
    tensors = [x for x in tree_leaves(call) if isinstance(x, Tensor) and x.is_floating_point()]
    narrow = bool(tensors) and tensors[0].dtype in (torch.bfloat16, torch.float16)
    if device.type != "cuda" or not (narrow or torch.is_autocast_enabled("cuda")):
        return torch.float64
    backends: Any = torch.backends
    switches = [backends.cuda.matmul.fp32_precision]
    if convolutions:
        switches.append(backends.cudnn.conv.fp32_precision)
    settled = [backends.fp32_precision if s == "none" else s for s in switches]
    return torch.float32 if all(s in ("ieee", "none") for s in settled) else torch.float64


def synchronize(device: torch.device) -> None:
    """Wait for the current stream: errors of its kernels are raised here."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def alive(device: torch.device) -> bool:
    """Whether the device still takes work. After an illegal access no call succeeds any more."""
    try:
        torch.ones(1, device=device).add_(1)
        synchronize(device)
    except RuntimeError:
        return False
    return True


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
    return examine(case, kernel, settled=settled, seconds=seconds)


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
        return first, {}, trial.met
    until = time.monotonic() + RESCUE_SECONDS
    for forms in _others(trial):
        if time.monotonic() > until:
            break
        with choices.trying(forms) as other:
            found = case.check(kernel)
        if found.reason is None:
            return found, forms, other.met
    return first, {}, trial.met


def _others(trial: Trial) -> Iterator[dict[Point, Form]]:
    defaults = {point: forms[0] for point, (form, forms) in trial.met.items() if form != forms[0]}
    if defaults:
        yield defaults
    for point, (taken, forms) in trial.met.items():
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
            self._finding.forms = {point: form for point, (form, _) in trial.met.items()}
            left = [p for p, (_, forms) in trial.met.items() if p not in done and len(forms) > 1]
            if not left:
                return changed
            if time.monotonic() >= self._until:
                self._finding.complete = False
                return False
            point = left[0]
            done.add(point)
            taken, forms = trial.met[point]
            changed |= self._settle(point, taken, forms)

    def _settle(self, point: Point, taken: Form, forms: tuple[Form, ...]) -> bool:
        """Find the fastest form of one point."""
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
