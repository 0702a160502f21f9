"""Every test of a command runs in an empty folder, without network and without cached weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sam2_fast.weights import hub


@pytest.fixture(autouse=True)
def isolated_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty folder as working directory, one thread, and no weights to download."""
    threads = torch.get_num_threads()
    # The models are tiny, and on a busy machine threads would wait for each other.
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "cached", lambda model_id: None)

    def fail(model_id: str) -> Path:
        raise hub.WeightsUnavailableError(f"weights {model_id!r}: offline")

    monkeypatch.setattr("sam2_fast.cli.weights._download", fail)
    yield
    torch.set_num_threads(threads)
