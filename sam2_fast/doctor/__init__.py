"""Prove and time every kernel of this machine at will: what `sam2-fast doctor` does."""

from __future__ import annotations

from sam2_fast.doctor.examination import Options as Options
from sam2_fast.doctor.examination import examine_machine as examine_machine

__all__ = ["Options", "examine_machine"]
