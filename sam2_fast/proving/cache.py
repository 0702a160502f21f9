"""Verdicts and choices of the devices of this process, stored on disk for all processes."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from sam2_fast.kernels.choices import Form
from sam2_fast.proving.card import Card
from sam2_fast.proving.files import ProgressFile
from sam2_fast.proving.messages import unwritable
from sam2_fast.proving.shipped import shipped
from sam2_fast.proving.store import Choice, Contents, Point, Store, Verdict


class RunningProof:
    """A proof that this process has started."""

    def __init__(self, progress: ProgressFile | None) -> None:
        self.earlier = 0 if progress is None else progress.earlier
        """Number of processes that started the same proof and died."""
        self.lost = False
        """Set to True if the device was lost, which counts like a process that died."""


class Cache:
    """A `Store` for each device. Unusable files cause a warning, never an exception."""

    def __init__(self, card: Callable[[torch.device], Card], directory: Callable[[], Path]) -> None:
        """card: returns the card of a device; directory: that of the cache, may raise OSError."""
        self.card = card
        self._directory = directory
        self._stores: dict[torch.device, Store | None] = {}
        self._warned = False

    def store(self, device: torch.device) -> Store | None:
        """The store of a device, or None without a directory for it."""
        if device not in self._stores:
            try:
                self._stores[device] = Store(self._directory(), self.card(device))
            except OSError as error:
                self._stores[device] = None
                self._warn(error)
        return self._stores[device]

    def contents(self, device: torch.device) -> Contents:
        """The contents of the file of a device."""
        store = self.store(device)
        return Contents() if store is None else store.read()

    def table(self, device: torch.device) -> dict[Point, Form]:
        """The shipped choices for a device, replaced by those measured on it."""
        choices = {**shipped(self.card(device).capability), **self.contents(device).choices}
        return {point: choice.form for point, choice in choices.items()}

    def save(self, device: torch.device, verdicts: list[Verdict], choices: list[Choice]) -> None:
        """Add to the file of a device."""
        store = self.store(device)
        if store is not None:
            try:
                store.merge(verdicts, choices)
            except OSError as error:
                self._warn(error)

    @contextmanager
    def running_proof(
        self, op: str, backend: str, text: str, device: torch.device
    ) -> Iterator[RunningProof]:
        """Show other processes that this one proves a kernel, and whether it dies meanwhile."""
        store = self.store(device)
        progress = None
        if store is not None:
            digest = hashlib.sha256(text.encode()).hexdigest()[:16]
            try:
                progress = store.begin(f"{op}-{backend}-{digest}")
            except OSError as error:
                self._warn(error)
        proof = RunningProof(progress)
        try:
            yield proof
        finally:  # an interruption does not count against the kernel
            if progress is not None:
                (progress.leave if proof.lost else progress.remove)()

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(unwritable(error), RuntimeWarning, stacklevel=2)
