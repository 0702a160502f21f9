"""What every test gets and must leave as it found it."""

from __future__ import annotations

import os

if (
    "PYTEST_XDIST_WORKER_COUNT" in os.environ
):  # workers that share the cores must not each start a thread per core and spin
    workers = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

# On a GPU tests judge kernels themselves; tests/proving switches proofs on.
os.environ.setdefault("SAM2_FAST_PROVE", "0")

from collections.abc import Iterator
from typing import Any

import pytest
import torch


def globals_of_the_process() -> dict[str, Any]:
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
def nothing_global_is_touched() -> Iterator[None]:
    """A test that changes these for the tests after it makes failures that depend on the order (and
    once stopped the machine).
    """
    before = globals_of_the_process()
    yield
    assert globals_of_the_process() == before
