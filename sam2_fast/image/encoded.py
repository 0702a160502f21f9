"""The images of a predictor, committed in one assignment, and the threads that set them."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Protocol, TypeVar, cast
from weakref import ReferenceType, ref

Value = TypeVar("Value")

ANOTHER_THREAD = (
    "another thread has set another image since this one did; give every thread a predictor of "
    "its own, or set `predictor.check_threads = False` if your program orders the calls itself"
)
"""The error of a thread that has set an image which another thread replaced."""


@dataclass(frozen=True)
class Setters:
    """The thread that set the current images, and the threads that set replaced ones.

    Threads are compared as objects: a number of a thread is used again after its end. Copies and
    pickles are empty, because another thread may get them.
    """

    current: ReferenceType[threading.Thread] | None = None
    earlier: tuple[ReferenceType[threading.Thread], ...] = ()

    def after_set(self) -> Setters:
        """The setters after the current thread has set images."""
        return Setters(ref(threading.current_thread()), self.after_removal().earlier)

    def after_removal(self) -> Setters:
        """The setters after the current thread has removed the images."""
        known = self.earlier if self.current is None else (*self.earlier, self.current)
        ignored = (None, threading.current_thread())
        return Setters(earlier=tuple(old for old in known if old() not in ignored))

    def have_replaced(self, thread: threading.Thread) -> bool:
        """Whether another thread has replaced or removed images that `thread` had set."""
        return any(old() is thread for old in self.earlier)

    def __reduce__(self) -> tuple[type[Setters], tuple[()]]:
        return Setters, ()


@dataclass(frozen=True)
class EncodedImages:
    """The images of a predictor.

    They are replaced as a whole, so an interrupt leaves all of the earlier or all of the new ones.
    """

    features: dict[str, Any] | None = None
    sizes: list[tuple[int, int]] | None = None
    """(height, width) of each image."""
    is_set: bool = False
    is_batch: bool = False
    setters: Setters = field(default_factory=Setters)

    def changed(self, **fields: Any) -> EncodedImages:
        """These images with some fields replaced by the current thread."""
        return replace(self, setters=self.setters.after_set(), **fields)

    def removed(self) -> EncodedImages:
        """No images; which threads had set some is still known."""
        return EncodedImages(setters=self.setters.after_removal())

    def check_thread(self) -> None:
        """Raise RuntimeError if another thread has replaced images that this thread had set."""
        if self.setters.have_replaced(threading.current_thread()):
            raise RuntimeError(ANOTHER_THREAD)


class HasImages(Protocol):
    """A predictor."""

    _images: EncodedImages


class FieldOfImages(Generic[Value]):
    """An attribute of a predictor that reads and replaces one field of its `_images`."""

    def __init__(self, field_name: str) -> None:
        self._field_name = field_name

    def __get__(self, predictor: HasImages | None, kind: type) -> Value:
        if predictor is None:
            raise AttributeError(f"type object {kind.__name__!r} has no images")
        return cast(Value, getattr(predictor._images, self._field_name))

    def __set__(self, predictor: HasImages, value: Value) -> None:
        predictor._images = predictor._images.changed(**{self._field_name: value})
