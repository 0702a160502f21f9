"""The order of the frames of a folder, by the names of their files.

Natural order: text is compared without regard to case, numbers by value, so that `frame_10` comes
after `frame_9`. A number may have a decimal point (`1700000000.25`, `t=0.125s`), and a minus if it
is at the start of the name or after `=` or `_`. Numbers that are joined by more than one point, as
in `1.2.10`, are whole numbers one after the other.

`1.9` and `1.10` have digits after the point of different lengths, and a zero at the end: they may
be decimal numbers, or counters after a point. Such folders are refused.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from decimal import Decimal

Number = int | Decimal
Key = tuple[tuple[str, int, Number], ...]
"""Texts and numbers alternately: (text, whether a number follows it, the number or 0)."""

_TOKEN = re.compile(
    r"(?P<text>.*?)"
    r"(?:(?P<version>[0-9]+(?:\.[0-9]+){2,})"
    r"|(?P<number>(?:(?:^|(?<=[=_]))-)?[0-9]+(?:\.[0-9]+)?(?:e[-+][0-9]{2,})?)"
    r"|$)",
    re.DOTALL,
)


def frame_key(stem: str) -> Key:
    """The sort key of a file name without its suffix; equal keys mean the same frame."""
    return tuple(
        (text, 0, 0) if number is None else (text, 1, _value(number))
        for text, number in _tokens(stem)
    )


def ambiguous_numbers(stems: Iterable[str]) -> tuple[str, str] | None:
    """Two names of which the digits after the point may be decimals or counters, or None."""
    groups: dict[tuple[str, ...], list[tuple[str, list[str]]]] = {}
    for stem in stems:
        if "." in stem:
            tokens = _tokens(stem)
            decimals = [(number or "").partition(".")[2] for _, number in tokens]
            if any(decimals):
                groups.setdefault(tuple(text for text, _ in tokens), []).append((stem, decimals))
    for names in groups.values():
        for position in range(len(names[0][1])):
            pair = _ambiguous_pair([(stem, decimals[position]) for stem, decimals in names])
            if pair is not None:
                return pair
    return None


def _ambiguous_pair(names: list[tuple[str, str]]) -> tuple[str, str] | None:
    """names: (stem, its digits after the point)."""
    padded = next((name for name in names if len(name[1]) > 1 and name[1].endswith("0")), None)
    if padded is None:
        return None
    other = next((stem for stem, digits in names if 0 < len(digits) != len(padded[1])), None)
    return None if other is None else (other, padded[0])


def _tokens(stem: str) -> list[tuple[str, str | None]]:
    """(text, number) pairs in order; the number is None at the end of a name."""
    tokens: list[tuple[str, str | None]] = []
    for match in _TOKEN.finditer(unicodedata.normalize("NFC", stem).casefold()):
        text = match["text"]
        if match["version"] is not None:
            for number in match["version"].split("."):
                tokens.append((text, number))
                text = "."
        elif match["number"] is not None:
            tokens.append((text, match["number"]))
        elif text:
            tokens.append((text, None))
    return tokens


def _value(number: str) -> Number:
    return int(number) if number.removeprefix("-").isdecimal() else Decimal(number)
