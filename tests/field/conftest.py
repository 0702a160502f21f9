"""Tests of inputs from the field run like those of commands."""

from __future__ import annotations

from tests.cli.conftest import isolated_folder

__all__ = ["isolated_folder"]
