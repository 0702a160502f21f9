"""Errors of other libraries, and texts of files, as a part of the library's own messages."""

from __future__ import annotations


def one_line(text: str) -> str:
    """Text of a file, such as a name, in one line and without control characters."""
    line = " ".join(text.split())
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


def reason_of(error: BaseException) -> str:
    """The message of an error in one line, or the name of its type if it has none.

    Messages of other libraries have several lines, or quote a file that has them.
    """
    return one_line(str(error)) or type(error).__name__
