"""Fixtures for proofs on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sam2_fast.proving.gate import Gate, using
from tests.proving.toy import gate_in


@pytest.fixture(autouse=True)
def proofs_enabled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAM2_FAST_PROVE", "1")


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """A gate with an empty cache."""
    with using(gate_in(tmp_path)) as gate_of_test:
        yield gate_of_test
