"""A pytest plugin: ends the run unless the native module is the sanitized one."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path

import pytest


def check_module() -> None:
    loaded = import_module("sam2_fast._C").__file__
    expected = os.environ["SAM2_FAST_SANITIZED"]
    if loaded is None or not Path(loaded).samefile(expected):
        raise pytest.UsageError(f"sam2_fast._C: expected {expected}, got {loaded}")


def pytest_configure() -> None:
    check_module()


def pytest_sessionfinish() -> None:
    check_module()
