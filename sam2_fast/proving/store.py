"""Verdicts and measured choices of one card, as a JSON file that processes share."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sam2_fast.atomic import whole_file
from sam2_fast.kernels.choices import Form, Key
from sam2_fast.proving.card import Card
from sam2_fast.proving.files import Mark, begin, locked

FORMAT, VERSION = "sam2_fast.proofs", 1
Point = tuple[str, Key]
"""A choice point of `kernels.choices` and the key it was met with."""


@dataclass(frozen=True)
class Verdict:
    """What is known of one kernel in one configuration on one card."""

    op: str
    backend: str
    configuration: str
    reason: str | None
    """None: proved. Else why the kernel must not run."""
    error: float | None = None
    """Multiple of torch's own error; None where it could not be measured, or all is integers."""
    milliseconds: float | None = None
    date: str = ""
    forms: tuple[tuple[str, Key, Form], ...] = ()
    """The forms with which it was proved: it says nothing about others."""

    def holds_with(self, table: Mapping[Point, Form]) -> bool:
        """Whether the kernel still takes those forms."""
        taken = ((table.get((point, key), form), form) for point, key, form in self.forms)
        return all(now == then for now, then in taken)

    @property
    def name(self) -> str:
        """Names it among all verdicts of a card."""
        return f"{self.op} {self.backend} {self.configuration}"


@dataclass(frozen=True)
class Choice:
    """The fastest proven form at one choice point, with where that is known from."""

    point: str
    key: Key
    form: Form
    source: str
    """ "measured" or "forecast"."""
    milliseconds: float | None = None
    """Of the whole op with this form; `default_milliseconds`: with the form it replaces."""
    default_milliseconds: float | None = None
    op: str = ""
    date: str = ""

    @property
    def at(self) -> Point:
        """Which decision it settles."""
        return self.point, self.key


class CorruptError(ValueError):
    """Text that is no file of ours; the message says why."""


@dataclass
class Contents:
    """What a file says."""

    verdicts: dict[str, Verdict] = field(default_factory=dict)
    choices: dict[Point, Choice] = field(default_factory=dict)

    def update(self, verdicts: Iterable[Verdict], choices: Iterable[Choice]) -> None:
        """Replace what is said about the same kernels and points."""
        self.verdicts |= {v.name: v for v in verdicts}
        self.choices |= {c.at: c for c in choices}


def encode(contents: Contents, card: Mapping[str, Any]) -> str:
    """As text."""
    return json.dumps(
        {
            "format": FORMAT,
            "version": VERSION,
            "card": dict(card),
            "verdicts": [asdict(v) for v in contents.verdicts.values()],
            "choices": [asdict(c) for c in contents.choices.values()],
        },
        indent=1,
    )


def decode(text: str, card: Mapping[str, Any]) -> Contents:
    """From text. Raises CorruptError where it is none of ours, or of another card."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise CorruptError(f"no JSON: {error}") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise CorruptError(f"not a file of format {FORMAT}")
    if found.get("version") != VERSION:
        raise CorruptError(f"version {found.get('version')}, expected {VERSION}")
    if found.get("card") != dict(card):
        raise CorruptError("it belongs to another card or another build")
    try:
        contents = Contents()
        contents.update(
            (_verdict(v) for v in found["verdicts"]), (choice_of(c) for c in found["choices"])
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise CorruptError(f"malformed: {type(error).__name__}: {error}") from error
    return contents


def _verdict(given: dict[str, Any]) -> Verdict:
    forms = tuple((p, *_key_and_form(key, form)) for p, key, form in given["forms"])
    verdict = Verdict(**{**given, "forms": forms})
    texts = (verdict.op, verdict.backend, verdict.configuration, verdict.date)
    if not all(isinstance(text, str) for text in texts):
        raise TypeError(f"expected texts, got {texts}")
    if not isinstance(verdict.reason, str | None):
        raise TypeError(f"reason: expected text or null, got {verdict.reason!r}")
    for number in (verdict.error, verdict.milliseconds):
        if not isinstance(number, int | float | None):
            raise TypeError(f"expected a number or null, got {number!r}")
    return verdict


def choice_of(given: dict[str, Any]) -> Choice:
    """From JSON. Raises TypeError for what is no choice."""
    key, form = _key_and_form(given.get("key"), given.get("form"))
    return Choice(**{**given, "key": key, "form": form})


def _key_and_form(key: Any, form: Any) -> tuple[Key, Form]:
    if not isinstance(key, list) or not all(isinstance(part, int | str) for part in key):
        raise TypeError(f"key: expected a list of numbers and texts, got {key!r}")
    if isinstance(form, str):
        return tuple(key), form
    if not isinstance(form, list) or not all(isinstance(part, int) for part in form):
        raise TypeError(f"form: expected a list of numbers or a text, got {form!r}")
    return tuple(key), tuple(form)


class Store:
    """The file of one card in a directory of the cache."""

    def __init__(self, directory: Path, card: Card) -> None:
        self.directory = directory
        self.path = directory / "proofs" / f"{card.identity}.json"
        self.notes: list[str] = []
        """Why a file was set aside or could not be read."""
        self._card = asdict(card)
        self._seen: tuple[int, int] | None = None  # of the file that `_contents` was read from
        self._contents = Contents()

    def read(self) -> Contents:
        """What is known. A file that cannot be used counts as empty; `notes` says why."""
        try:
            status = os.stat(self.path)
            seen = status.st_mtime_ns, status.st_size
            if seen != self._seen:
                self._seen, self._contents = seen, Contents()
                self._contents = self._parse()
            return self._contents
        except FileNotFoundError:
            return Contents()
        except OSError as error:
            self._note(f"{self.path} cannot be read: {error}")
        except ValueError as error:  # CorruptError, or bytes that are no text
            self._note(f"{self.path} is not used: {error}")
        return Contents()

    def _parse(self) -> Contents:
        try:
            return decode(self.path.read_text(encoding="utf-8"), self._card)
        except FileNotFoundError:
            return Contents()

    def _current(self) -> Contents:
        """As `read`, under the lock: a file that cannot be used is set aside."""
        try:
            return self._parse()
        except ValueError as error:
            aside = self.path.with_suffix(f".{os.getpid()}.corrupt")
            os.replace(self.path, aside)
            self._note(f"{self.path.name} was set aside as {aside.name}: {error}")
        return Contents()

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def merge(self, verdicts: Iterable[Verdict], choices: Iterable[Choice]) -> None:
        """Add to what the file says now, in one step for all processes. Raises OSError."""
        with locked(self.path.with_suffix(".lock")):
            contents = self._current()
            contents.update(verdicts, choices)
            with whole_file(self.path) as beside:
                beside.write_text(encode(contents, self._card), encoding="utf-8")

    def begin(self, name: str) -> Mark | None:
        """Mark the proof of `name` as under way; None where another live process proves the same.

        Raises OSError.
        """
        return begin(self.path.with_suffix("") / f"{name}.unfinished")

    def set_aside(self) -> list[str]:
        """Names of files that were set aside, by this process and by others."""
        return sorted(path.name for path in self.path.parent.glob("*.corrupt"))
