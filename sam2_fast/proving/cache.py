"""What is known of the devices of this process, kept on disk for all processes."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from sam2_fast.kernels.choices import Form
from sam2_fast.proving.card import Card
from sam2_fast.proving.files import Mark
from sam2_fast.proving.messages import unwritable
from sam2_fast.proving.shipped import shipped
from sam2_fast.proving.store import Choice, Contents, Point, Store, Verdict


class UnderWay:
    """A proof that this process has begun."""

    def __init__(self, mark: Mark | None) -> None:
        self.earlier = 0 if mark is None else mark.earlier
        """Processes that began the same proof and died."""
        self.lost = False
        """Set where the proof took the device with it: it then counts like a process that died."""


class Cache:
    """A `Store` for each device. Files that cannot be used cost a warning, never an exception."""

    def __init__(self, card: Callable[[torch.device], Card], directory: Callable[[], Path]) -> None:
        """card: what is behind a device; directory: of the cache, may raise OSError."""
        self.card = card
        self._directory = directory
        self._stores: dict[torch.device, Store | None] = {}
        self._warned = False

    def store(self, device: torch.device) -> Store | None:
        """The file of a device; None where there is no place for it."""
        if device not in self._stores:
            try:
                self._stores[device] = Store(self._directory(), self.card(device))
            except OSError as error:
                self._stores[device] = None
                self._warn(error)
        return self._stores[device]

    def contents(self, device: torch.device) -> Contents:
        """What the file of a device says."""
        store = self.store(device)
        return Contents() if store is None else store.read()

    def table(self, device: torch.device) -> dict[Point, Form]:
        """The shipped choices for a device, replaced by what was measured on it."""
        known = {**shipped(self.card(device).capability), **self.contents(device).choices}
        return {point: choice.form for point, choice in known.items()}

    def save(self, device: torch.device, verdicts: list[Verdict], found: list[Choice]) -> None:
        """Add to the file of a device."""
        store = self.store(device)
        if store is not None:
            try:
                store.merge(verdicts, found)
            except OSError as error:
                self._warn(error)

    @contextmanager
    def under_way(
        self, op: str, backend: str, text: str, device: torch.device
    ) -> Iterator[UnderWay]:
        """Other processes see that this one proves a kernel, and whether it died."""
        store, mark = self.store(device), None
        if store is not None:
            digest = hashlib.sha256(text.encode()).hexdigest()[:16]
            try:
                mark = store.begin(f"{op}-{backend}-{digest}")
            except OSError as error:
                self._warn(error)
        proof = UnderWay(mark)
        try:
            yield proof
        finally:  # an interruption is no failure of the kernel
            if mark is not None:
                (mark.leave if proof.lost else mark.remove)()

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(unwritable(error), RuntimeWarning, stacklevel=2)
