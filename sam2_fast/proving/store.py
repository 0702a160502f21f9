"""Verdicts and measured choices of one card, as a JSON file that processes share."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sam2_fast.files.atomic import whole_file
from sam2_fast.kernels.choices import Form, Key
from sam2_fast.proving.card import Card
from sam2_fast.proving.files import ProgressFile, begin, locked

FORMAT, VERSION = "sam2_fast.proofs", 1
Point = tuple[str, Key]
"""A choice point of `kernels.choices` and the key of the choice."""


@dataclass(frozen=True)
class Verdict:
    """The result of the proof of one kernel in one configuration on one card."""

    op: str
    backend: str
    configuration: str
    reason: str | None
    """Why the kernel must not run, or None if it is proved."""
    error: float | None = None
    """Multiple of torch's own error. None if it could not be measured, and for integer results."""
    milliseconds: float | None = None
    date: str = ""
    forms: tuple[tuple[str, Key, Form], ...] = ()
    """The forms of the proof; the verdict is valid for them only."""

    def holds_with(self, table: Mapping[Point, Form]) -> bool:
        """Whether the kernel uses the forms of the proof, with this table."""
        return all(table.get((point, key), form) == form for point, key, form in self.forms)

    @property
    def name(self) -> str:
        """A name that is unique among the verdicts of a card."""
        return f"{self.op} {self.backend} {self.configuration}"


@dataclass(frozen=True)
class Choice:
    """The fastest correct form at one choice point, and the source of this knowledge."""

    point: str
    key: Key
    form: Form
    source: str
    """ "measured" or "forecast"."""
    milliseconds: float | None = None
    """Of the whole op with this form; `default_milliseconds`: with the default form."""
    default_milliseconds: float | None = None
    op: str = ""
    date: str = ""

    @property
    def at(self) -> Point:
        """The choice point and its key."""
        return self.point, self.key


class CorruptError(ValueError):
    """Text that is not a valid file of this format. The message has the reason."""


@dataclass
class Contents:
    """The contents of a file."""

    verdicts: dict[str, Verdict] = field(default_factory=dict)
    choices: dict[Point, Choice] = field(default_factory=dict)

    def update(self, verdicts: Iterable[Verdict], choices: Iterable[Choice]) -> None:
        """Add verdicts and choices; replace those of the same kernels and points."""
        self.verdicts |= {v.name: v for v in verdicts}
        self.choices |= {c.at: c for c in choices}


def encode(contents: Contents, card: Mapping[str, Any]) -> str:
    """The text of a file."""
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
    """The contents of a text. Raises CorruptError for another format or another card."""
    try:
        document = json.loads(text)
    except ValueError as error:
        raise CorruptError(f"not JSON: {error}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise CorruptError(f"not a file of format {FORMAT}")
    if document.get("version") != VERSION:
        raise CorruptError(f"version {document.get('version')}, expected {VERSION}")
    if document.get("card") != dict(card):
        raise CorruptError("it belongs to another card or another build")
    try:
        contents = Contents()
        contents.update(
            (_verdict(v) for v in document["verdicts"]),
            (choice_of(c) for c in document["choices"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise CorruptError(f"malformed: {type(error).__name__}: {error}") from error
    return contents


def _verdict(fields: dict[str, Any]) -> Verdict:
    forms = tuple((p, *_key_and_form(key, form)) for p, key, form in fields["forms"])
    verdict = Verdict(**{**fields, "forms": forms})
    texts = (verdict.op, verdict.backend, verdict.configuration, verdict.date)
    if not all(isinstance(text, str) for text in texts):
        raise TypeError(f"expected texts, got {texts}")
    if not isinstance(verdict.reason, str | None):
        raise TypeError(f"reason: expected text or null, got {verdict.reason!r}")
    for number in (verdict.error, verdict.milliseconds):
        if not isinstance(number, int | float | None):
            raise TypeError(f"expected a number or null, got {number!r}")
    return verdict


def choice_of(fields: dict[str, Any]) -> Choice:
    """A choice from JSON. Raises TypeError for wrong fields or types."""
    key, form = _key_and_form(fields.get("key"), fields.get("form"))
    return Choice(**{**fields, "key": key, "form": form})


def _key_and_form(key: Any, form: Any) -> tuple[Key, Form]:
    if not isinstance(key, list) or not all(isinstance(part, int | str) for part in key):
        raise TypeError(f"key: expected a list of numbers and texts, got {key!r}")
    if isinstance(form, str):
        return tuple(key), form
    if not isinstance(form, list) or not all(isinstance(part, int) for part in form):
        raise TypeError(f"form: expected a list of numbers or a text, got {form!r}")
    return tuple(key), tuple(form)


class Store:
    """The file of one card in the directory of the cache."""

    def __init__(self, directory: Path, card: Card) -> None:
        self.directory = directory
        self.path = directory / "proofs" / f"{card.identity}.json"
        self.notes: list[str] = []
        """Why a file was set aside or could not be read."""
        self._card = asdict(card)
        # modification time and size of the file, and what was read from it
        self._known: tuple[tuple[int, int] | None, Contents] = (None, Contents())

    def read(self) -> Contents:
        """The contents of the file. An unusable file counts as empty; `notes` has the reason."""
        try:
            status = os.stat(self.path)
            version = status.st_mtime_ns, status.st_size
            known_version, contents = self._known
            if version != known_version:
                contents = self._parse()
                self._known = version, contents
            return contents
        except FileNotFoundError:
            return Contents()
        except OSError as error:
            self._note(f"{self.path} cannot be read: {error}")
        except ValueError as error:  # CorruptError, or bytes that are not text
            self._note(f"{self.path} is not used: {error}")
            self._known = version, Contents()
        return Contents()

    def _parse(self) -> Contents:
        try:
            return decode(self.path.read_text(encoding="utf-8"), self._card)
        except FileNotFoundError:
            return Contents()

    def _current(self) -> Contents:
        """The contents, read under the lock: an unusable file is set aside."""
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
        """Add to the current contents of the file, atomically. Raises OSError."""
        with locked(self.path.with_suffix(".lock")):
            contents = self._current()
            contents.update(verdicts, choices)
            with whole_file(self.path) as temporary:
                temporary.write_text(encode(contents, self._card), encoding="utf-8")

    def begin(self, name: str) -> ProgressFile | None:
        """The progress file of the proof `name`, or None if another live process does this proof.

        Raises OSError.
        """
        return begin(self.path.with_suffix("") / f"{name}.unfinished")

    def set_aside(self) -> list[str]:
        """Names of files that were set aside, by this process and by others."""
        return sorted(path.name for path in self.path.parent.glob("*.corrupt"))
