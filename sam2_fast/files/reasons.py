"""The errors of other libraries as a part of the library's own messages."""

from __future__ import annotations


def reason_of(error: BaseException) -> str:
    """The message of an error in one line, or the name of its type if it has none.

    Messages of other libraries have several lines, or quote a file that has them.
    """
    return " ".join(str(error).split()) or type(error).__name__
