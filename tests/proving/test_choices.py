"""Among the forms of a kernel the fastest that is right is taken, and known from then on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from sam2_fast.kernels import choices
from torch import Tensor

from sam2_fast.ops.core import registry
from sam2_fast.proving.case import Case
from sam2_fast.proving.gate import using
from sam2_fast.proving.prover import prove
from sam2_fast.proving.rules import Call, Rule
from sam2_fast.proving.store import Choice
from tests.proving.toy import call, definition, gate_in, made, registered

CPU = torch.device("cpu")
FIRST, SECOND = ("first", (64,)), ("second", (64,))


class Tiled:
    """A kernel of two choice points. What a form costs is its number."""

    def __init__(self, first: tuple[Any, ...], second: tuple[Any, ...] = ("0",)) -> None:
        self._first, self._second = first, second
        self.taken: list[tuple[Any, Any]] = []

    def __call__(self, x: Tensor, weight: Tensor, offset: float) -> Any:
        one = choices.choose(x.device, *FIRST, self._first[0], self._first[1:])
        other = choices.choose(x.device, *SECOND, self._second[0], self._second[1:])
        self.taken.append((one, other))
        for form in (one, other):
            if form == "raises":
                raise RuntimeError("PassManager::run failed")
        y, positive = definition(x, weight, offset)
        return y + ("wrong" in one), positive


@pytest.fixture(autouse=True)
def times_by_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that goes by what forms cost, so that a busy machine decides nothing."""

    def timed(case: Case, kernel: Tiled) -> float:
        case.run(kernel)
        forms = kernel.taken[-1]
        return 1.0 + sum(f[0] if isinstance(f, tuple) else float(f.split()[0]) for f in forms)

    monkeypatch.setattr(Case, "time", timed)


def tried(kernel: Tiled, seconds: float = 60.0, **options: Any) -> dict[Any, Any]:
    """Of each point the form that is taken."""
    given = Call(made(torch.bfloat16), {})
    found = prove(kernel, definition, Rule(), given, seconds=seconds, **options)
    assert found.outcome.reason is None
    return {point: t.form for point, t in found.fastest.items()}


@contextmanager
def no_table() -> Iterator[None]:
    with choices.separate_tables(lambda device: {}):
        yield


def test_the_fastest_right_form_is_taken() -> None:
    kernel = Tiled(((6,), (4,), (1,), (3,)), ("4", "1"))
    with no_table():
        assert tried(kernel) == {FIRST: (1,), SECOND: "1"}


def test_a_wrong_or_failing_form_is_not_taken_however_fast() -> None:
    kernel = Tiled(("3", "0 wrong", "raises"))
    with no_table():
        given = Call(made(torch.bfloat16), {})
        found = prove(kernel, definition, Rule(), given, seconds=60)
        assert {p: t.form for p, t in found.fastest.items()} == {FIRST: "3"}
        reasons = {t.form: t.reason for t in found.form_results}
        assert "error of torch" in (reasons["0 wrong"] or "")
        assert "PassManager" in (reasons["raises"] or "")


@pytest.mark.parametrize(("other", "taken"), [("0.98", "1"), ("0.9", "0.9")])
def test_noise_does_not_choose(other: str, taken: str) -> None:
    with no_table():
        assert tried(Tiled(("1", other))) == {FIRST: taken}


def test_points_that_are_measured_are_left_alone() -> None:
    kernel = Tiled(("3", "0"), ("3", "0"))
    with no_table():
        assert tried(kernel, settled={FIRST}) == {SECOND: "0"}


def test_no_time_means_no_trials() -> None:
    kernel = Tiled(("1", "0"))
    with no_table():
        assert tried(kernel, seconds=0) == {}
        assert {one for one, _ in kernel.taken} == {"1"}


def test_where_the_default_fails_another_form_is_taken() -> None:
    kernel = Tiled(("raises", "2", "0"))
    with no_table():
        assert tried(kernel) == {FIRST: "0"}
        assert tried(kernel, seconds=0) == {FIRST: "2"}, "also where there is no time to compare"


def test_a_shipped_form_that_fails_gives_way_to_the_default() -> None:
    kernel = Tiled(("1", "raises"))
    with choices.separate_tables(lambda device: {FIRST: "raises"}):
        assert tried(kernel, seconds=0) == {FIRST: "1"}


def test_measured_forms_are_taken_at_once_and_by_later_processes(tmp_path: Path) -> None:
    kernel = Tiled(("4", "0"))
    with registered(kernel):
        with using(gate_in(tmp_path)):
            call()
            assert kernel.taken[-1] == ("0", "0")
        kernel.taken.clear()
        with using(gate_in(tmp_path)):
            call()
    assert kernel.taken == [("0", "0")]


def test_measured_forms_replace_shipped_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sam2_fast.proving import cache

    forecast = {FIRST: Choice(*FIRST, "2", "forecast"), SECOND: Choice(*SECOND, "1", "forecast")}
    monkeypatch.setattr(cache, "shipped", lambda capability: forecast)
    kernel = Tiled(("4", "2", "0"), ("2", "1"))
    with registered(kernel):
        with using(gate_in(tmp_path, tuning_seconds=0.0)):
            call()
            assert kernel.taken[-1] == ("2", "1"), "shipped"
        with using(gate_in(tmp_path / "other")):
            call()
            assert kernel.taken[-1] == ("0", "1"), "measured"


def test_a_kernel_is_proved_again_when_another_changes_its_form(tmp_path: Path) -> None:
    """Two ops share a choice point: what one takes is no proof for the other."""
    patient, eager = Tiled(("2", "1")), Tiled(("2", "1"))
    gate = gate_in(tmp_path, tuning_seconds=0.0)
    with registered(patient), registered(eager, op="other"):
        with using(gate):
            call()
            call()
            assert [one for one, _ in patient.taken[-2:]] == ["2", "2"]
        before = len(patient.taken)
        with using(gate_in(tmp_path)):
            arguments = made(torch.bfloat16)
            registry.execute("other", "auto", *arguments)
            assert eager.taken[-1][0] == "1"
            call()
            assert len(patient.taken) > before + 1 and patient.taken[-1][0] == "1"
            before = len(patient.taken)
            call()
            assert len(patient.taken) == before + 1, "once"
        with using(gate):  # the process that had proved the old form
            gate.replace(CPU, {}, [Choice(*FIRST, "1", "measured")])
            before = len(patient.taken)
            call()
            assert len(patient.taken) == before + 1, "the file has a verdict about the new form"


def test_two_ops_do_not_undo_each_others_choices(tmp_path: Path) -> None:
    class Picky(Tiled):
        def __call__(self, x: Tensor, weight: Tensor, offset: float) -> Any:
            result = super().__call__(x, weight, offset)
            if self.taken[-1][0] == "1":
                raise RuntimeError("out of resource: shared memory")
            return result

    first, picky = Tiled(("2", "1")), Picky(("2", "1"))
    with registered(first), registered(picky, op="other"), using(gate_in(tmp_path)):
        call()
        arguments = made(torch.bfloat16)
        with pytest.warns(RuntimeWarning, match="correct only with another form of first"):
            registry.execute("other", "auto", *arguments)
        before = len(first.taken), len(picky.taken)
        call()
        registry.execute("other", "auto", *arguments)
        assert (len(first.taken), len(picky.taken)) == (before[0] + 1, before[1])
        assert first.taken[-1][0] == "1"


def test_tables_of_the_process_are_as_before() -> None:
    with no_table():
        choices.install(CPU, {FIRST: "0"})
        with choices.separate_tables(lambda device: {FIRST: "1"}):
            assert choices.choose(CPU, *FIRST, "2", ("0", "1")) == "1"
        assert choices.choose(CPU, *FIRST, "2", ("0", "1")) == "0"
