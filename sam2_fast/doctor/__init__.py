"""Prove and time every kernel on this machine, for `sam2-fast doctor`."""

from __future__ import annotations

from sam2_fast.doctor.examination import Options as Options
from sam2_fast.doctor.examination import examine_machine as examine_machine

__all__ = ["Options", "examine_machine"]
