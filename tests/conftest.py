"""Settings for all tests, and a check that no test changes settings of the process."""

from __future__ import annotations

import os

# Workers share the cores, so that each of them must start fewer threads than there are cores.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    workers = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

# On a GPU tests compare kernels themselves, without proofs; tests/proving enables proofs.
os.environ.setdefault("SAM2_FAST_PROVE", "0")

from collections.abc import Iterator
from typing import Any

import pytest
import torch


def process_settings() -> dict[str, Any]:
    return {
        "scheduling": os.sched_getscheduler(0) if hasattr(os, "sched_getscheduler") else None,
        "threads": torch.get_num_threads(),
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "gradients": torch.is_grad_enabled(),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")),
        "matmul precision": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


@pytest.fixture(autouse=True)
def unchanged_process_settings() -> Iterator[None]:
    """Fail tests that change settings of the process.

    Such changes cause failures of later tests, and once a real-time scheduling policy made the
    whole machine unresponsive.
    """
    before = process_settings()
    yield
    assert process_settings() == before
